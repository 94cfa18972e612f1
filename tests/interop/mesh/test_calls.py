"""The bridge's promises hold through Envoy: answers, details, deadlines, cancels and backpressure."""

import asyncio
import contextlib
import json
import time
from collections import Counter

import grpc
import httpx2
import pytest
from google.protobuf import duration_pb2

from tests.kit.client import Bridge, chat, scenario
from tests.kit.envoy import run_envoy
from tests.kit.waiting import eventually
from tests.kit.windows import WINDOWS, start_call

CLOSED_S = 10.0  # from the caller's cancel to the end of the gateway's connection, through two hops
METHODS = pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])


def with_request_id(request_id):
    return {"metadata": [("x-request-id", request_id)]}


def count_logged_codes(bridge):
    """Count the codes of the calls in a bridge's log."""
    return Counter(json.loads(line)["code"] for line in bridge.log_lines if '"event":"call"' in line)


@METHODS
async def test_answer_metadata_and_trailers_pass(envoy, emulator, stream):
    answer = await envoy.ask(chat("Hello"), stream=stream, **with_request_id("one"))
    assert answer.failure is None
    assert answer.text == "You said: Hello"
    returned = answer.initial if stream else answer.trailers
    assert returned["x-request-id"] == "one"
    assert returned["x-ratelimit-limit-requests"] == "1000"
    assert float(answer.trailers["ollmbridge-upstream-ms"]) >= 0
    (exchange,) = emulator.exchanges
    assert exchange.headers["x-request-id"] == "one"


async def test_chunks_pass_one_by_one(envoy, emulator):
    """No hop holds a chunk back until the next one."""
    call = envoy.stub.StreamChatCompletion(scenario("pace?chunks=4&interval_ms=1000"), timeout=60)
    arrivals = [(chunk.choices[0].delta.content, time.monotonic_ns()) async for chunk in call]
    delays_ms = [(arrived - int(content.split()[1])) / 1e6 for content, arrived in arrivals if content]
    assert len(delays_ms) == 4
    assert min(delays_ms) < 500  # each would be late by 1000


async def test_id_that_envoy_creates_reaches_the_gateway(envoy, emulator):
    answer = await envoy.ask(chat())
    created = answer.trailers["x-request-id"]
    assert emulator.exchanges[0].headers["x-request-id"] == created
    assert (await envoy.wait_for_log_line(created))["grpc_status"] == "OK"


async def test_message_larger_than_envoys_buffers_passes_both_ways(envoy):
    content = "x" * 4_000_000
    answer = await envoy.ask(scenario("mirror", messages=chat(content).messages), timeout=60)
    assert content in answer.text


@METHODS
async def test_status_with_large_details_passes_whole(envoy, stream):
    """Trailers of nearly 6 KiB, in a trailers-only answer and after chunks."""
    name = "error_event?after=2&message=" + "%E9%94%99" * 2500 if stream else "error?status=500&size=8192"
    failed = (await envoy.ask(scenario(name), stream=stream, **with_request_id("large"))).failure
    assert (failed.code, failed.reason) == ("INTERNAL", "UPSTREAM_STREAM_ERROR" if stream else "UPSTREAM_INTERNAL")
    assert failed.upstream.truncated
    assert set(failed.upstream.message) == {"错"}
    assert failed.details["RequestInfo"].request_id == "large"
    sent = sum(len(value) for value in failed.trailers.values()) + 9 * len(failed.message)
    assert sent > 4000  # before base64
    assert (await envoy.wait_for_log_line("large"))["grpc_status"] == "INTERNAL"


async def test_details_and_pushback_of_a_refusal_pass(envoy, emulator):
    failed = (await envoy.ask(scenario("rate_limited?retry_after=2"), **with_request_id("limited"))).failure
    assert (failed.code, failed.reason) == ("RESOURCE_EXHAUSTED", "UPSTREAM_RATE_LIMITED")
    assert failed.details["RetryInfo"].retry_delay == duration_pb2.Duration(seconds=2)
    assert failed.trailers["grpc-retry-pushback-ms"] == "2000"
    assert len(emulator.exchanges) == 1
    line = await envoy.wait_for_log_line("limited")
    assert (line["grpc_status"], line["attempts"], line["flags"]) == ("RESOURCE_EXHAUSTED", 1, "-")


async def test_bridge_refuses_metadata_above_its_own_limit(envoy):
    failed = (await envoy.ask(chat(), metadata=[("x-large", "x" * 9000)])).failure
    assert (failed.code, failed.reason) == ("INVALID_ARGUMENT", "INVALID_METADATA")


@METHODS
async def test_deadline_reaches_the_bridge(envoy, served_bridge, emulator, stream):
    """A gRPC-Web caller that sends a deadline, and does not enforce it, gets the bridge's status."""
    method = "StreamChatCompletion" if stream else "CreateChatCompletion"
    request = scenario("stall?headers=0").SerializeToString()
    async with httpx2.AsyncClient(base_url=f"http://{envoy.address}", timeout=60, trust_env=False) as client:
        began_at = time.monotonic()
        answer = await client.post(
            f"/ollmbridge.v1.ChatCompletionService/{method}",
            headers={"content-type": "application/grpc-web+proto", "grpc-timeout": "500m"},
            content=b"\0" + len(request).to_bytes(4, "big") + request,
        )
    assert 0.5 <= time.monotonic() - began_at < 0.5 + CLOSED_S
    assert answer.headers["grpc-status"] == str(grpc.StatusCode.DEADLINE_EXCEEDED.value[0])
    await (await emulator.next_exchange()).wait_closed(CLOSED_S)
    await eventually(lambda: count_logged_codes(served_bridge))
    assert count_logged_codes(served_bridge) == {"DEADLINE_EXCEEDED": 1}


async def test_deadline_of_a_running_stream_always_has_its_code(envoy, emulator):
    """If Envoy enforced the deadline too, some of these streams would end with INTERNAL."""
    calls = 100

    async def ask_with_deadline(number):
        return await envoy.ask(scenario("stall?after=2"), stream=True, timeout=2 + number * 0.0037)

    answers = await asyncio.gather(*(ask_with_deadline(number) for number in range(calls)))
    assert Counter(answer.failure.code for answer in answers) == {"DEADLINE_EXCEEDED": calls}
    assert {len(answer.messages) for answer in answers} == {2}
    await eventually(lambda: all(exchange.closed_at for exchange in emulator.exchanges), CLOSED_S)
    assert len(emulator.exchanges) == calls


async def test_call_without_data_for_fifteen_seconds_goes_on(envoy):
    """Fifteen seconds is Envoy's default timeout of a route."""
    answer = await envoy.ask(scenario("slow?delay_s=15.5"), timeout=60)
    assert answer.failure is None


@pytest.mark.parametrize("window", WINDOWS)
async def test_cancel_closes_the_upstream(envoy, emulator, window):
    call = await start_call(envoy, window)
    exchange = await emulator.next_exchange()
    await WINDOWS[window].wait(exchange)
    call.cancel()
    cancelled_at = time.monotonic()
    assert await exchange.wait_closed() - cancelled_at < CLOSED_S
    assert not exchange.finished


async def test_caller_whose_connection_dies_is_cancelled(envoy, emulator):
    async with grpc.aio.insecure_channel(envoy.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        call = Bridge(envoy.address, channel).stub.StreamChatCompletion(scenario("stall?after=2"))
        await call.read()
        exchange = await emulator.next_exchange()
    closed_at = time.monotonic()
    assert await exchange.wait_closed() - closed_at < CLOSED_S


@pytest.mark.timeout(240)  # 60 MB by a client in Python
async def test_slow_reader_slows_the_gateway_down(envoy, emulator):
    chunks, chunk_bytes = 15_000, 4000
    call = envoy.stub.StreamChatCompletion(scenario(f"many?chunks={chunks}&bytes={chunk_bytes}"))
    await call.read()
    exchange = await emulator.next_exchange()
    sent = -1
    while sent != exchange.events_sent:
        sent = exchange.events_sent
        await asyncio.sleep(0.5)
    assert sent * chunk_bytes < 30_000_000
    count = 1
    while await call.read() is not grpc.aio.EOF:
        count += 1
    assert count == chunks + 2
    assert await call.code() is grpc.StatusCode.OK


async def test_a_thousand_streams_at_once_and_one_more(envoy, emulator):
    """The bridge's limit refuses the call, with a wait, before any limit of Envoy's."""
    async with contextlib.AsyncExitStack() as stack:
        calls = [envoy.stub.StreamChatCompletion(scenario("stall?after=2")) for _ in range(1000)]
        for call in calls:
            stack.callback(call.cancel)
        async with asyncio.timeout(40):
            await asyncio.gather(*(call.read() for call in calls))
        # The connection is full, and the client would wait for a place on it.
        other = grpc.aio.insecure_channel(envoy.address, options=[("grpc.use_local_subchannel_pool", 1)])
        await stack.enter_async_context(other)
        failed = (await Bridge(envoy.address, other).ask(chat(), timeout=60)).failure
    assert (failed.code, failed.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    await eventually(lambda: all(exchange.closed_at for exchange in emulator.exchanges), 20)


async def test_access_log_has_a_call_and_no_secret(envoy, served_bridge):
    key = "sk-" + "k" * 24
    metadata = [("x-request-id", "seen"), ("authorization", f"Bearer {key}")]
    await envoy.ask(scenario("error?status=404"), metadata=metadata)
    line = await envoy.wait_for_log_line("seen")
    assert line["method"] == "/ollmbridge.v1.ChatCompletionService/CreateChatCompletion"
    assert (line["grpc_status"], line["http_status"]) == ("NOT_FOUND", 200)
    assert (line["bridge"], line["attempts"]) == (served_bridge.address, 1)
    assert key not in json.dumps(envoy.access)


async def test_configuration_causes_no_warning(envoy, tmp_path):
    await envoy.ask(chat())
    assert envoy.said == []


async def test_no_bridge_at_all_is_unavailable(served_bridge, tmp_path):
    """Nothing was sent, so the call is safe to retry, and its code says so."""
    await served_bridge.channel.close()
    served_bridge.process.kill()
    await served_bridge.process.wait()
    async with run_envoy(tmp_path, served_bridge.address) as envoy:
        failed = (await envoy.ask(chat(), **with_request_id("none"))).failure
        assert failed.code == "UNAVAILABLE"
        assert (await envoy.wait_for_log_line("none"))["flags"] in {"UH", "URX,UF"}
