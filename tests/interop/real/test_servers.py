"""The fixtures behave as the tests through the bridge assume, checked directly over HTTP.

The shim is not under test, but what it must not do is: change a request's spelling, hold a reply back, keep a call open
that its client has left. And what breaks behind the gateway must have broken there.
"""

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from tests.interop.real.clients import HttpClient, http_client
from tests.kit.real import servers


@pytest.fixture
async def client(gateway_key: str):
    async with http_client(key=gateway_key) as client:
        yield client


def summarize(events: list[Any]) -> list[str | None]:
    """Return the content of each event: a word, a role, a finish_reason, "error", or the event itself."""

    def summarize_event(event: Any) -> str | None:
        match event:
            case {"error": {"message": _}}:
                return "error"
            case {"choices": [{"delta": {"role": _}}]}:
                return "role"
            case {"choices": [{"delta": {"content": word}}]}:
                return word
            case {"choices": [{"finish_reason": reason}]}:
                return reason
        return event

    return [summarize_event(event) for event in events]


# The shim


async def test_shim_asks_for_a_key_only_where_it_has_one(client: HttpClient, gateway_url: str, open_gateway_url: str):
    stranger = HttpClient(client.http)
    refused = await stranger.unary(gateway_url)
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "missing_api_key")
    assert (await stranger.unary(open_gateway_url)).status_code == 200
    assert (await client.unary(gateway_url)).status_code == 200


async def test_shim_keeps_the_spelling_of_other_keys(client: HttpClient, gateway_url: str):
    response = await client.unary(gateway_url, max_tokens=4.0)
    assert response.status_code == 400
    assert "floating point `4.0`, expected u32" in response.json()["error"]["message"]


async def test_shim_renames_options_and_models(client: HttpClient, gateway_url: str):
    options = {"ollm::deny_unknown_fields": True, "ollm::variant_name": "v2", "ollm::tags": {"a": "b"}}
    response = await client.unary(gateway_url, model="ollm::function_name::hello", **options)
    assert response.json()["model"] == "tensorzero::function_name::hello::variant_name::v2"


async def test_shim_holds_nothing_back(client: HttpClient, gateway_url: str, llmock: servers.Llmock):
    await llmock.scenario({"type": "stream_fault", "kind": "stall", "after_chunks": 3, "stall_seconds": 30})
    events = client.events(gateway_url, model="faulty")
    assert [bool(word) for word in summarize([await anext(events) for _ in range(3)])] == [True] * 3
    await events.aclose()


@pytest.mark.parametrize("stream", [False, True])
async def test_shim_closes_a_call_whose_client_disconnects(
    client: HttpClient, gateway_url: str, slots: servers.Gauge, open_calls: servers.Gauge, *, stream: bool
):
    call = asyncio.create_task(client.unary(gateway_url, stream=stream, max_tokens=100))
    await slots.wait_until(1)
    call.cancel()
    with suppress(asyncio.CancelledError):
        await call
    assert await open_calls.wait_until(0) < 5


# What breaks behind the gateway

# Of a role, five words and a finish, the fourth is hit.
MID_STREAM = {
    "disconnect": ["role", "one ", "two ", "error", None, "[DONE]"],
    "truncate": ["role", "one ", "two ", None, "[DONE]"],
    "malformed": ["role", "one ", "two ", "error", "four ", "five", "stop", "[DONE]"],
}


@pytest.mark.parametrize(("kind", "expected"), MID_STREAM.items(), ids=MID_STREAM.keys())
async def test_gateway_ends_with_done_whatever_breaks(
    client: HttpClient, gateway_url: str, llmock: servers.Llmock, kind: str, expected: list[str | None]
):
    await llmock.scenario(
        {"type": "reply", "text": "one two three four five"}, {"type": "stream_fault", "kind": kind, "after_chunks": 3}
    )
    assert summarize(await client.stream(gateway_url, model="faulty")) == expected


# The gauges


async def test_slots_tell_a_stream_at_work_and_that_it_was_dropped(
    client: HttpClient, llama_url: str, slots: servers.Gauge
):
    events = client.events(llama_url, max_tokens=500)
    await anext(events)
    assert await slots.read() == 1
    await events.aclose()
    assert await slots.wait_until(0) < 5


async def test_llmock_records_that_a_client_disconnected_in_a_stall(client: HttpClient, llmock: servers.Llmock):
    await llmock.scenario({"type": "stream_fault", "kind": "stall", "after_chunks": 2, "stall_seconds": 30})
    events = client.events(llmock.url)
    await anext(events)
    await events.aclose()
    [request] = await llmock.requests()
    assert (request["completed"], (request["stall_waited"] or 0) < 5) == (False, True)


async def test_llmock_judges_a_client_that_does_not_wait(client: HttpClient, llmock: servers.Llmock):
    await llmock.scenario({"type": "fail", "status": 429, "retry_after": 5})
    assert [(await client.unary(llmock.url)).status_code for _ in range(2)] == [429, 200]
    verdict = await llmock.verdict()
    assert not verdict["passed"]
    assert [finding["code"] for finding in verdict["findings"]] == ["retry_after_ignored"]
