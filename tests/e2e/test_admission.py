"""What is paid for a call before it is admitted: messages that are not read, not finished, too many; and its time."""

import asyncio
import contextlib
import gzip
from collections.abc import Callable

import grpc
import pytest

from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionRequest
from ollmbridge.v1.chat_pb2 import ChatMessage
from tests.kit.bridges import start_bridge_process
from tests.kit.client import chat, scenario
from tests.kit.http2 import (
    ACK,
    DATA,
    OPENING,
    PING,
    SERVICE,
    UNACKNOWLEDGED,
    WINDOW_UPDATE,
    build_fields,
    encode_block,
    encode_call,
    encode_frame,
    encode_headers,
    encode_message,
    encode_opening,
    exchange_bytes,
    is_last,
    parse_grpc_status,
    parse_trailers,
    read_frame,
    split_messages,
)
from tests.kit.proc import HAS_PROC, read_resident_bytes
from tests.kit.statuses import check_overloaded
from tests.kit.waiting import WAIT_S, eventually

MIB = 1024 * 1024
TIMEOUT = ("DEADLINE_EXCEEDED", "UPSTREAM_TIMEOUT")
RESOURCE_EXHAUSTED, UNIMPLEMENTED = 8, 12
UNFINISHED = (
    OPENING + encode_headers(encode_block(build_fields())) + encode_frame(DATA, 0, 1, encode_message(bytes(MIB))[:1000])
)
"""A call whose message is announced with 1 MiB and does not come, though its caller has not ended the call."""
PING_FRAME, PING_ACK = (encode_frame(PING, flags, 0, b"everyone") for flags in (0, ACK))
METHODS = pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])


@pytest.mark.skipif(not HAS_PROC, reason="memory is read from /proc")
async def test_messages_of_calls_that_are_not_admitted_stay_with_their_callers(emulator):
    calls, message_bytes = 40, 3 * MIB
    async with start_bridge_process(emulator, calls_max=1, queue_max=calls) as bridge:
        first = asyncio.create_task(bridge.ask(scenario("stall?headers=0"), timeout=WAIT_S))
        await emulator.next_exchange()
        before = read_resident_bytes(bridge.process.pid)
        waiting = [asyncio.create_task(bridge.ask(chat("x" * message_bytes), timeout=WAIT_S)) for _ in range(calls)]
        await asyncio.sleep(1)  # nothing announces what does not come; a slow machine would only find less
        assert read_resident_bytes(bridge.process.pid) - before < calls * message_bytes / 3
        for task in (first, *waiting):
            task.cancel()
        await asyncio.wait([first, *waiting])


async def test_message_that_does_not_arrive_ends_its_call(start_bridge):
    bridge = await start_bridge(receive_timeout_s=0.2)
    await exchange_bytes(bridge.address, UNFINISHED)
    record = await bridge.records.next()
    assert (record.code, record.reason) == TIMEOUT


async def test_message_that_is_never_finished_gives_way_to_others(start_bridge):
    bridge = await start_bridge(request_bytes_max=2 * MIB, receiving_bytes_max=2 * MIB)
    async with hold(bridge, UNFINISHED) as reader, asyncio.timeout(WAIT_S):
        assert bridge.records.all == []
        assert (await bridge.ask(chat("x" * 100_000), timeout=WAIT_S)).failure is None
        answer = b""
        while (status := parse_grpc_status(answer)) is None:
            answer += await reader.read(65536)
    assert status == RESOURCE_EXHAUSTED
    assert "OVERLOADED" in {(await bridge.records.next()).reason for _ in range(2)}


async def test_unfinished_messages_take_slots_of_the_calls_limit(start_bridge):
    bridge = await start_bridge(calls_max=1)
    async with hold(bridge, UNFINISHED):
        await eventually_refused(bridge)
    async with asyncio.timeout(WAIT_S):
        while (await bridge.ask(chat(), timeout=WAIT_S)).failure is not None:
            pass


@contextlib.asynccontextmanager
async def hold(bridge, payload: bytes):
    """Send bytes on a connection; once the bridge has them, yield its reader, and close it when the block ends."""
    host, _, port = bridge.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(payload + PING_FRAME)
    await asyncio.wait_for(reader.readuntil(PING_ACK), WAIT_S)
    yield reader
    writer.close()


async def eventually_refused(bridge) -> None:
    async with asyncio.timeout(WAIT_S):
        while (failure := (await bridge.ask(chat(), timeout=WAIT_S)).failure) is None:
            pass
    assert (failure.reason, failure.message) == ("OVERLOADED", "too many calls in flight (calls_max = 1)")


async def test_burst_above_the_limit_is_refused_as_it_comes_and_health_is_answered(start_bridge):
    bridge = await start_bridge(calls_max=2, server={"engine": "native"})
    body = encode_message(scenario("stall?headers=0").SerializeToString())
    burst = b"".join(encode_call(body, stream=stream) for stream in range(1, 40, 2))
    health = encode_call(encode_message(b""), path=b"/grpc.health.v1.Health/Check", stream=41)
    answer = await exchange_bytes(bridge.address, OPENING + burst + health, last_stream=41)
    for stream in range(5, 40, 2):
        check_overloaded(parse_trailers(answer, stream), b"too many calls in flight (calls_max = 2)")
    assert parse_trailers(answer, 41)[b"grpc-status"] == b"0"
    assert [(await bridge.records.next()).code for _ in range(2)] == ["CANCELLED", "CANCELLED"]


@METHODS
@pytest.mark.parametrize("size", [10, MIB], ids=["small", "large"])
@pytest.mark.parametrize("limit", ["calls_max", "calls_per_caller_max"])
async def test_stock_client_has_the_status_of_each_call_that_is_refused_as_it_comes(
    start_bridge, emulator, stream, size, limit
):
    bridge = await start_bridge(**{limit: 1}, server={"engine": "native"})
    first = asyncio.create_task(bridge.ask(scenario("stall?headers=0"), timeout=WAIT_S))
    await emulator.next_exchange()
    asked = [bridge.ask(chat("x" * size), stream=stream, timeout=WAIT_S) for _ in range(150)]
    failures = [answer.failure for answer in await asyncio.gather(*asked)]
    assert {(failure.code, failure.reason, failure.pushback_ms) for failure in failures} == {
        ("RESOURCE_EXHAUSTED", "OVERLOADED", "1000")
    }
    assert all("RetryInfo" in failure.details and f"{limit} = 1" in failure.message for failure in failures)
    assert bridge.records.all == []  # they did not run
    first.cancel()
    await asyncio.wait([first])
    async with asyncio.timeout(WAIT_S):
        while (await bridge.ask(chat("x" * size), stream=stream, timeout=WAIT_S)).failure is not None:
            pass


@METHODS
async def test_deadline_beyond_the_longest_time_is_cut_to_it(start_bridge, stream):
    bridge = await start_bridge(call_timeout_max_s=0.3)
    failure = (await bridge.ask(scenario("stall?headers=0"), stream=stream, timeout=1e8)).failure
    assert (failure.code, failure.reason) == TIMEOUT
    assert failure.message == "the call exceeded call_timeout_max_s (0.3 s)"


async def test_call_whose_caller_reads_nothing_ends_and_frees_its_slot(start_bridge, emulator):
    bridge = await start_bridge(calls_max=1, write_stall_timeout_s=0.3)
    call = encode_call(
        encode_message(scenario("many?chunks=1000&bytes=1000").SerializeToString()),
        path=SERVICE + b"StreamChatCompletion",
    )
    async with hold(bridge, encode_opening(initial_window=0) + call):
        exchange = await emulator.next_exchange()
        record = await bridge.records.next()
        assert (record.code, record.reason) == TIMEOUT
        await exchange.wait_closed()
        assert (await bridge.ask(chat(), timeout=WAIT_S)).failure is None


async def test_small_messages_that_are_never_finished_hold_up_no_other(start_bridge):
    bridge = await start_bridge(request_bytes_max=MIB, receiving_bytes_max=MIB, server={"engine": "native"})
    half = encode_message(chat().SerializeToString())[:-3]
    unfinished = [
        encode_headers(encode_block(build_fields()), stream) + encode_frame(DATA, 0, stream, half)
        for stream in range(1, 100, 2)
    ]
    async with hold(bridge, OPENING + b"".join(unfinished)):
        assert (await bridge.ask(chat(), timeout=WAIT_S)).failure is None
        assert [record.code for record in bridge.records.all] == ["OK"]


@METHODS
async def test_caller_who_takes_a_large_answer_slowly_gets_all_of_it(start_bridge, stream):
    """It takes a byte again and again until another call, which began later, is ended for taking nothing."""
    bridge = await start_bridge(write_stall_timeout_s=1, server={"engine": "native"})
    call = encode_large_call(stream=stream)
    has_begun = asyncio.Event()
    steady = asyncio.create_task(exchange_slowly(bridge.address, call, lambda: len(bridge.records.all) > 0, has_begun))
    await asyncio.wait_for(has_begun.wait(), WAIT_S)
    assert b"took nothing" in await exchange_bytes(bridge.address, encode_opening(initial_window=0) + call)
    assert parse_grpc_status(await steady) == 0
    assert [record.code for record in bridge.records.all] == ["DEADLINE_EXCEEDED", "OK"]


async def test_grpc_aio_tells_nothing_of_a_message_that_is_taken_slowly(start_bridge):
    bridge = await start_bridge(write_stall_timeout_s=0.5, server={"engine": "grpcio"})
    await exchange_slowly(bridge.address, encode_large_call(stream=True), lambda: len(bridge.records.all) > 0)
    assert [record.code for record in bridge.records.all] == ["DEADLINE_EXCEEDED"]


def encode_large_call(*, stream: bool) -> bytes:
    request = scenario("huge_event?size=100000" if stream else "big?size=100000")
    method = b"StreamChatCompletion" if stream else b"CreateChatCompletion"
    return encode_call(encode_message(request.SerializeToString()), path=SERVICE + method)


async def exchange_slowly(
    address: str, call: bytes, is_in_a_hurry: Callable[[], bool], has_begun: asyncio.Event | None = None
) -> bytes:
    """Return the answer to a call, of which one byte is taken after another, and the rest if in a hurry.

    A pause between the bytes, since a window that opens by a byte as fast as it can is an attack.
    """

    def widen(size: int, stream: int = 1) -> bytes:
        return encode_frame(WINDOW_UPDATE, 0, stream, size.to_bytes(4))

    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(encode_opening(initial_window=0) + call + widen(MIB, stream=0) + widen(1))
    answer = b""
    async with asyncio.timeout(WAIT_S):
        while not is_last(frame := await read_frame(reader)):
            answer += frame
            if frame[3] == DATA and len(frame) == 10:
                if has_begun is not None:
                    has_begun.set()
                await asyncio.sleep(0.01)
                writer.write(widen(MIB if is_in_a_hurry() else 1))
    writer.close()
    return answer + frame


async def test_connection_whose_caller_does_not_acknowledge_the_limits_is_closed(bridge):
    host, _, port = bridge.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(UNACKNOWLEDGED)
    async with asyncio.timeout(WAIT_S):
        await reader.read()
    writer.close()


LISTS = {
    "messages": lambda: CreateChatCompletionRequest(model="echo", messages=[ChatMessage()] * 1_000_000),
    "entries of extra_json": lambda: chat(extra_json={str(number): "1" for number in range(10_001)}),
}


@pytest.mark.parametrize("build", LISTS.values(), ids=LISTS)
async def test_list_of_too_many_items_is_refused_before_it_is_decoded(bridge, emulator, build):
    failure = (await bridge.ask(build(), timeout=WAIT_S, compression=grpc.Compression.Gzip)).failure
    assert (failure.code, failure.reason) == ("INVALID_ARGUMENT", "INVALID_REQUEST")
    (violation,) = failure.details["BadRequest"].field_violations
    assert violation.field in {"messages", "extra_json"}
    assert violation.description == "expected at most 10000 items in a request, found more"
    assert not emulator.exchanges


async def test_status_tells_a_hundred_violations_at_most(bridge):
    request = chat(messages=[ChatMessage()] * 5000)
    failure = (await bridge.ask(request, timeout=WAIT_S)).failure
    assert failure.message == "messages[0].role: expected a role, found an empty string (and 4999 more)"
    assert 0 < len(failure.details["BadRequest"].field_violations) <= 100


async def test_compression_that_is_not_accepted_is_refused(start_bridge):
    bridge = await start_bridge(connections={"encodings": ()})
    payload = OPENING + encode_call(encode_message(b"", 1), (b"grpc-encoding", b"gzip"))
    assert parse_grpc_status(await exchange_bytes(bridge.address, payload)) == UNIMPLEMENTED
    assert (await bridge.ask(chat())).failure is None


async def test_compression_is_accepted_by_default(bridge):
    for compression in (grpc.Compression.Gzip, grpc.Compression.Deflate):
        assert (await bridge.ask(chat("x" * 100_000), compression=compression)).failure is None


@pytest.mark.parametrize("method", [b"CreateChatCompletion", b"StreamChatCompletion"], ids=["unary", "stream"])
async def test_answer_is_not_compressed_though_its_caller_compresses_and_accepts_it(bridge, method):
    packed = gzip.compress(chat("x" * 1000).SerializeToString())
    headers = (b"grpc-encoding", b"gzip"), (b"grpc-accept-encoding", b"identity,deflate,gzip")
    payload = OPENING + encode_call(encode_message(packed, 1), *headers, path=SERVICE + method)
    answer = await exchange_bytes(bridge.address, payload)
    assert parse_grpc_status(answer) == 0
    (messages,) = split_messages(answer, preface=False)
    assert any(b"xxxx" in message for message in messages)  # none but those whose flag says that they are as they are


async def test_call_whose_deadline_is_shorter_than_the_queue_is_refused_at_once(start_bridge, emulator):
    bridge = await start_bridge(calls_max=1, queue_max=300, connections={"streams_max": 300})
    calls = [asyncio.create_task(bridge.ask(scenario("slow?delay_s=0.1"))) for _ in range(200)]
    await eventually(lambda: len(emulator.exchanges) > 12)
    answer = await bridge.ask(chat(), timeout=10)  # the queue lasts for 18 s, on a busy machine longer
    assert (answer.failure.code, answer.failure.reason) == ("RESOURCE_EXHAUSTED", "QUEUE_TOO_LONG")
    assert answer.failure.pushback_ms == "1000"
    await eventually(lambda: sum(call.done() for call in calls) >= 20)
    assert all(call.result().failure is None for call in calls if call.done())
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    assert (await bridge.ask(chat(), timeout=WAIT_S)).failure is None
