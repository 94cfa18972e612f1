"""Tests of bridge/emulator/gateway.py: its life, routes and record, over real sockets."""

import asyncio
import contextlib
import json
import socket
import time
import urllib.request

import httpx2
import pytest

from bridge.emulator import DEFAULT_MODELS, SCENARIOS, Emulator
from tests.kit.processes import has_ipv6
from tests.kit.waiting import WAIT_S
from tests.unit.emulator.client import Client, Response, ollm, request

KEY = "sk-ollm-a-b"


def scenario(text: str, *, stream: bool = True):
    return request(model=f"scenario::{text}", stream=stream)


async def ask(body, *headers: str, **settings) -> Response:
    """Send one request to an emulator of its own."""
    async with Emulator(**settings) as emulator, Client(emulator.port) as client:
        return await client.post(body, *headers)


async def test_every_response_carries_the_request_id_and_the_limits():
    async with Emulator() as emulator, Client(emulator.port) as client:
        headers = [(await client.post(request(), "X-Request-Id: abc-1")).headers for _ in range(2)]
        missing = (await client.get("/nowhere")).headers
    assert [each["x-request-id"] for each in headers] == ["abc-1", "abc-1"]
    assert [each["x-ratelimit-remaining-requests"] for each in headers] == ["998", "997"]
    assert (headers[0]["x-ratelimit-limit-requests"], headers[0]["x-ollm-gateway-version"]) == ("1000", "emulator")
    assert int(headers[0]["openai-processing-ms"]) >= 0
    assert headers[0].keys() == missing.keys()


async def test_common_http_clients_get_along():
    async with Emulator() as emulator:
        async with httpx2.AsyncClient(base_url=emulator.url) as client:
            for _ in range(3):
                reply = await client.post("/v1/chat/completions", json=request(stream=True))
                assert reply.text.endswith("data: [DONE]\n\n")
        assert emulator.connections_opened == 1
        with await asyncio.to_thread(urllib.request.urlopen, f"{emulator.url}/v1/models") as answer:
            models = json.load(answer)
    assert [model["id"] for model in models["data"]] == list(DEFAULT_MODELS)


# Routes


@pytest.mark.parametrize(
    ("method", "path", "status", "body"),
    [
        ("GET", "/health?a", 200, b'{"status":"ok"}'),
        ("GET", "/v1/chat/completions", 405, b""),
        ("POST", "/health", 405, b""),
        ("HEAD", "/health", 405, b""),
        ("POST", "/v1/nope?a", 404, b'{"error":"Route not found: POST /v1/nope"}'),
        ("GET", "/v1/models", 200, b'{"object":"list","data":[]}'),
    ],
)
async def test_route_answers_its_method_alone(method, path, status, body):
    async with Emulator(models=()) as emulator, Client(emulator.port) as client:
        response = await client.get(path, method=method)
    assert (response.status, response.body) == (status, body)
    if status == 405:
        assert response.headers["allow"] == {"/health": "GET"}.get(path, "POST")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, None),
        (request(n=2), 400, None),
        (request(model="nope"), 404, "model_not_found"),
        (scenario("nope"), 404, "model_not_found"),
        (scenario("slow?delay_s=x"), 404, "model_not_found"),
        (scenario("error?envelope=brown"), 400, None),
    ],
)
async def test_bad_completion_is_refused(body, status, code):
    response = await ask(body)
    assert (response.status, response.json["error"]["code"]) == (status, code)
    assert list(response.json["error"]) == ["message", "type", "code", "param"]


async def test_key_is_asked_for_completions_and_models():
    async with Emulator(api_key=KEY) as emulator, Client(emulator.port) as client:
        assert (await client.post(request())).status == (await client.get("/v1/models")).status == 401
        assert (await client.post(request(), f"Authorization: Bearer {KEY}")).status == 200
        assert (await client.get("/v1/models", f"Authorization: Bearer {KEY}")).status == 200
        assert (await client.get("/_emulator/exchanges")).status == (await client.get("/health")).status == 200


async def test_answer_names_the_model_in_full():
    assert (await ask(request(model="mine"), models=["mine"])).json["model"] == "ollm::model_name::mine"


async def test_second_identical_request_is_answered_from_the_cache():
    body = ollm("cache_options", {"enabled": "on"})
    async with Emulator() as emulator, Client(emulator.port) as client:
        usages = [(await client.post(body)).json["usage"]["total_tokens"] for _ in range(2)]
    assert usages == [6, 0]


async def test_chunks_wait_for_the_delay_of_all():
    response = await ask(request(stream=True, max_tokens=1), chunk_delay_s=0.001)
    assert len(response.pieces) == 4


# Scenarios


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
@pytest.mark.parametrize("name", sorted(SCENARIOS.keys() - {"stall"}))
async def test_scenario_plays_to_its_end(name, stream):
    async with Emulator() as emulator, Client(emulator.port) as client:
        client.send(scenario(name, stream=stream))
        if name == "close":
            assert await client.reader.read() == b""
        else:
            response = await client.receive()
            assert response.whole is (name not in {"reset", "half_chunk"})
            assert response.status == (await emulator.next_exchange()).status


async def test_scenario_for_all_requests_yields_to_the_one_in_the_model():
    async with Emulator(scenario="error?status=418&message=tea") as emulator, Client(emulator.port) as client:
        response = await client.post(request())
        assert (response.status, response.json["error"]["message"]) == (418, "tea")
        assert (await client.post(scenario("plain"))).status == 200


def test_unknown_scenario_for_all_requests_is_refused_at_once():
    with pytest.raises(ValueError, match="expected one of"):
        Emulator(scenario="nope")


async def is_answered(emulator: Emulator) -> bool:
    """Return whether a new connection gets an answer."""
    try:
        async with Client(emulator.port) as client:
            return (await client.post(request())).status == 200
    except (OSError, asyncio.IncompleteReadError):
        return False


async def test_connections_are_reset_at_once_as_often_as_asked():
    async with Emulator(scenario="refuse?connects=2") as emulator:
        assert [await is_answered(emulator) for _ in range(3)] == [False, False, True]
        async with Client(emulator.port) as client:
            await client.post(scenario("refuse?connects=1"))
            assert [await is_answered(emulator) for _ in range(2)] == [False, True]
            await client.post(scenario("refuse?connects=1"))
            await emulator.accept()
            assert await is_answered(emulator)
        assert emulator.connections_opened == 7


# The record


async def test_exchange_tells_what_came_and_what_was_sent():
    async with Emulator() as emulator, Client(emulator.port) as client:
        before = time.monotonic()
        body = ollm("tags", {"team": "a"}) | {"stream": True}
        await client.post(body, "X-One: a", "X-One: b")
        exchange = await emulator.next_exchange()
        assert (exchange.method, exchange.path, exchange.headers["x-one"]) == ("POST", "/v1/chat/completions", "a, b")
        assert exchange.json == body == json.loads(exchange.body)
        assert (exchange.tags, exchange.billed) == ({"team": "a"}, True)
        assert before <= exchange.received_at <= time.monotonic()
        assert (exchange.status, exchange.events_sent, exchange.finished, exchange.closed_at) == (200, 7, True, None)
        assert emulator.exchanges == [exchange]


@pytest.mark.parametrize(
    ("body", "billed"),
    [
        (request(), True),
        (ollm("dryrun", True), False),
        (ollm("dryrun", None), True),
        (request(n=2), False),
        (scenario("error"), False),
        (scenario("cut"), True),
        (scenario("reset?after=0"), True),
    ],
)
async def test_dry_runs_and_refusals_are_not_billed(body, billed):
    async with Emulator() as emulator, Client(emulator.port) as client:
        await client.post(body)
        assert (await emulator.next_exchange()).billed is billed


@pytest.mark.parametrize("text", ["reset?after=-1", "close"])
async def test_exchange_without_an_answer_is_recorded(text):
    async with Emulator() as emulator, Client(emulator.port) as client:
        client.send(scenario(text))
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await client.receive_head()
        exchange = await emulator.next_exchange()
        assert (exchange.status, exchange.billed, exchange.finished) == (None, True, False)


async def test_each_exchange_is_returned_once_in_order():
    async with Emulator() as emulator, Client(emulator.port) as client:
        waiting = asyncio.create_task(emulator.next_exchange())
        await client.post(request(seed=1))
        await client.post(request(seed=2))
        assert [(await waiting).json["seed"], (await emulator.next_exchange()).json["seed"]] == [1, 2]
        with pytest.raises(TimeoutError):
            await emulator.next_exchange(timeout_s=0.01)


@pytest.mark.parametrize(("settings", "seeds"), [({"exchanges_max": 3}, [2, 3, 4]), ({}, [0, 1, 2, 3, 4])])
async def test_exchanges_are_bounded_in_number(settings, seeds):
    async with Emulator(**settings) as emulator, Client(emulator.port) as client:
        for seed in range(5):
            await client.post(request(seed=seed))
        assert [exchange.json["seed"] for exchange in emulator.exchanges] == seeds
        assert [(await emulator.next_exchange()).json["seed"] for _ in seeds] == seeds


async def test_exchanges_are_bounded_in_bytes_also_after_a_test_has_cleared_them():
    async with Emulator(exchange_body_bytes_max=3000) as emulator, Client(emulator.port) as client:
        for expected in (1, 2, 2):
            await client.post(b"x" * 1200)
            assert len(emulator.exchanges) == expected
        emulator.exchanges.clear()
        for expected in (1, 2, 2):
            await client.post(b"x" * 1200)
            assert len(emulator.exchanges) == expected
        await client.post(b"x" * 5000)
        assert [len(exchange.body) for exchange in emulator.exchanges] == [5000]


async def test_exchanges_are_served_without_the_key():
    async with Emulator() as emulator, Client(emulator.port) as client:
        await client.post(request(seed=1), f"Authorization: Bearer {KEY}")
        await client.post(request(seed=2))
        response = await client.get("/_emulator/exchanges")
        assert b"sk-ollm" not in response.body
        assert [(one["json"]["seed"], one["authorization"]) for one in response.json] == [(1, True), (2, False)]
        seeds = {
            query: [one["json"]["seed"] for one in (await client.get(f"/_emulator/exchanges?{query}")).json]
            for query in ("last=1", "last=0", "last=9", "last=x")
        }
        assert seeds == {"last=1": [2], "last=0": [], "last=9": [1, 2], "last=x": [1, 2]}
        assert len(emulator.exchanges) == 2


# Its life


async def test_refusing_emulator_accepts_connections_again_on_the_same_port():
    async with Emulator() as emulator:
        port = emulator.port
        await emulator.refuse()
        assert not await is_answered(emulator)
        await emulator.accept()
        assert await is_answered(emulator)
        assert emulator.port == port


@pytest.mark.parametrize("host", ["127.0.0.1", "::"])
async def test_refusing_emulator_holds_its_port(host):
    if host == "::" and not has_ipv6():
        pytest.skip("no IPv6 on this machine")
    async with Emulator(host=host) as emulator:
        await emulator.refuse()
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", emulator.port))
        await emulator.accept()
        await emulator.refuse()
    with socket.socket() as other:
        other.bind(("127.0.0.1", emulator.port))


@pytest.mark.parametrize("turns", range(6))
async def test_connection_that_comes_as_the_emulator_ends_is_closed(turns):
    """In each turn of the loop from its accept on."""
    tasks = asyncio.all_tasks()
    async with Emulator() as emulator:
        client = socket.create_connection((emulator.host, emulator.port), timeout=WAIT_S)
        for _ in range(turns):
            await asyncio.sleep(0)
    with client, contextlib.suppress(ConnectionResetError):
        assert not emulator.connections
        assert asyncio.all_tasks() == tasks
        assert await asyncio.to_thread(client.recv, 1) == b""
    assert not emulator.connections


async def test_end_of_the_emulator_leaves_no_task_and_no_connection():
    tasks = asyncio.all_tasks()
    async with contextlib.AsyncExitStack() as clients:
        async with Emulator() as emulator:
            for text in ("stall", "slow?delay_s=600", "plain"):
                client = await clients.enter_async_context(Client(emulator.port))
                client.send(scenario(text))
                await emulator.next_exchange()
        assert asyncio.all_tasks() == tasks
        assert not emulator.connections
        assert not await is_answered(emulator)
