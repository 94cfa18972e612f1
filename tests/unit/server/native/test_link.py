"""Tests of bridge/server/native/link.py: requests that are no calls, refusals, and abuse that leaves nothing."""

import asyncio
import contextlib
import gc
import socket

import pytest

from bridge.core.errors import BridgeError, Code
from bridge.core.status import to_grpc_status
from bridge.server.h2.frames import ErrorCode
from bridge.server.h2.limits import Limits
from bridge.server.native.link import Link
from bridge.server.rpc import Caller, Rpc
from ollmbridge.v1 import error_details_pb2 as details_pb2
from tests.kit import http2
from tests.kit.hostile import connect, hold_connections, send_what_fits
from tests.kit.http2 import END_STREAM, encode_call, encode_frame, encode_headers, exchange_bytes, find_reset
from tests.kit.waiting import eventually
from tests.unit.server.native.serving import MANY, ONE, make_sleeper, serve

MESSAGE = http2.encode_message(b"hello")
PING, PONG = encode_frame(6, 0, 0, b"a moment"), encode_frame(6, 1, 0, b"a moment")
FIELDS = http2.build_fields(path=ONE)


def replace(name: bytes, value: bytes) -> bytes:
    return http2.encode_block([(each, value if each == name else old) for each, old in FIELDS])


def ask_plainly(block: bytes) -> bytes:
    return http2.OPENING + encode_headers(block, 1, END_STREAM)


PLAIN = {
    "GET": (ask_plainly(replace(b":method", b"GET")), b"405", b"speaks gRPC alone"),
    "GET with a body": (
        http2.OPENING + encode_headers(replace(b":method", b"PUT")) + encode_frame(0, 1, 1, b"x"),
        b"405",
        b"speaks",
    ),
    "PUT of more than is awaited": (
        http2.OPENING + encode_headers(replace(b":method", b"PUT")) + encode_frame(0, 0, 1, bytes(16_384)),
        b"405",
        b"speaks",
    ),
    "JSON": (ask_plainly(replace(b"content-type", b"application/json")), b"415", b"speaks gRPC alone"),
    "another format": (ask_plainly(replace(b"content-type", b"application/grpc+json")), b"415", b"speaks"),
}


@pytest.mark.parametrize(("payload", "status", "body"), PLAIN.values(), ids=PLAIN)
async def test_request_that_is_no_grpc_gets_a_plain_answer(payload, status, body):
    async with serve() as served:
        answer = await exchange_bytes(served.address, payload)
        assert status in answer
        assert body in answer
        await served.wait_until_nothing_is_left(len(asyncio.all_tasks()))


@pytest.mark.parametrize("body", [b"", b"x"], ids=["alone", "with a body"])
async def test_answer_to_head_has_no_content(body):
    async with serve() as served:
        call = encode_headers(replace(b":method", b"HEAD"), 1, 0 if body else END_STREAM)
        payload = http2.OPENING + call + (encode_frame(0, 1, 1, body) if body else b"")
        frames = http2.split_frames(await exchange_bytes(served.address, payload))
        answer = [(frame.kind, frame.flags & END_STREAM) for frame in frames if frame.stream == 1]
        assert answer[:1] == [(http2.HEADERS, END_STREAM)]
        assert http2.DATA not in {kind for kind, _ in answer}
        await served.wait_until_nothing_is_left(len(asyncio.all_tasks()))


async def test_fault_after_the_body_of_a_request_that_is_no_grpc_is_found():
    block = replace(b":method", b"PUT")
    async with serve() as served, hold_connections(served.address, http2.OPENING) as (connected,):
        loop, found = asyncio.get_running_loop(), b""
        await loop.sock_sendall(connected, encode_headers(block) + encode_frame(0, 0, 1, b"x") + PING)
        while PONG not in found:
            found += await loop.sock_recv(connected, 100_000)
        await loop.sock_sendall(connected, encode_headers(block))
        while (code := http2.find_reset(found)) is None:
            found += await loop.sock_recv(connected, 100_000)
        assert code == ErrorCode.PROTOCOL_ERROR
        assert b"405" not in found


REFUSED = {
    "unknown method": (encode_call(MESSAGE, path=b"/test.Service/None"), 12),
    "bad timeout": (encode_call(MESSAGE, (b"grpc-timeout", b"soon"), path=ONE), 13),
    "bad binary metadata": (encode_call(MESSAGE, (b"x-bin", b"!"), path=ONE), 13),
    "unknown encoding": (encode_call(MESSAGE, (b"grpc-encoding", b"br"), path=ONE), 12),
    "large metadata": (encode_call(MESSAGE, *((b"x-%d" % number, b"x" * 1000) for number in range(34)), path=ONE), 8),
}


@pytest.mark.parametrize(("call", "status"), REFUSED.values(), ids=REFUSED)
async def test_call_that_is_refused_by_its_head_has_a_status_and_no_handler(call, status):
    handled = []

    async def handle(rpc) -> None:
        handled.append(rpc)

    async with serve(handle) as served:
        assert http2.parse_grpc_status(await exchange_bytes(served.address, http2.OPENING + call)) == status
        await served.wait_until_nothing_is_left(len(asyncio.all_tasks()))
    assert handled == []


async def test_call_without_te_is_refused():
    block = http2.encode_block([(name, value) for name, value in FIELDS if name != b"te"])
    async with serve() as served:
        answer = await exchange_bytes(
            served.address, http2.OPENING + encode_headers(block) + http2.encode_data(MESSAGE)
        )
        assert http2.parse_grpc_status(answer) == 13
        assert b"te: trailers is missing" in answer


async def test_content_type_with_protobuf_or_parameters_is_grpc():
    async with serve() as served:
        for value in (b"application/grpc+proto", b"application/grpc;charset=utf-8", b"application/grpc+proto;x=y"):
            call = encode_headers(replace(b"content-type", value)) + http2.encode_data(MESSAGE)
            assert http2.parse_grpc_status(await exchange_bytes(served.address, http2.OPENING + call)) == 0


async def test_refusal_at_a_limit_makes_no_task_and_reads_nothing():
    error = BridgeError(Code.RESOURCE_EXHAUSTED, details_pb2.ERROR_REASON_OVERLOADED, "full")
    status = to_grpc_status(error)
    refused = []

    def refuse(method: str, _arriving: int):
        refused.append((method, len(asyncio.all_tasks())))
        return status

    async with serve(refuse=refuse) as served:
        async with hold_connections(served.address, http2.OPENING) as (connected,):
            await eventually(lambda: len(served.engine.shared.links) == 1)
            tasks = len(asyncio.all_tasks())
            # The metadata is not looked at either: this timeout can't be read.
            calls = b"".join(
                encode_call(MESSAGE, (b"grpc-timeout", b"soon"), path=ONE, stream=number) for number in range(1, 100, 2)
            )
            await send_what_fits(connected, calls)
            await eventually(lambda: len(refused) == 50)
            assert {count for _, count in refused} <= set(range(tasks + 2))
            await served.wait_until_nothing_is_left(tasks)
        answer = await exchange_bytes(served.address, http2.OPENING + encode_call(MESSAGE, path=ONE))
        assert http2.parse_trailers(answer)[b"grpc-message"] == b"full"


async def test_burst_above_the_limit_starts_no_more_calls_than_there_is_room_for():
    room, ended, in_flight, refused = 3, [], [], []

    def refuse(_method: str, arriving: int):
        if len(in_flight) + arriving < room:
            return None
        refused.append(arriving)
        return to_grpc_status(BridgeError(Code.RESOURCE_EXHAUSTED, details_pb2.ERROR_REASON_OVERLOADED, "full"))

    sleep = make_sleeper(ended.append)

    async def handle(rpc) -> None:
        in_flight.append(rpc)
        await sleep(rpc)

    burst = b"".join(encode_call(MESSAGE, path=ONE, stream=number) for number in range(1, 100, 2))
    async with serve(handle, refuse=refuse) as served:
        tasks = len(asyncio.all_tasks())
        async with hold_connections(served.address, http2.OPENING + burst) as (connected,):
            await eventually(lambda: len(in_flight) == room)
            assert refused == [room] * 47
            assert served.slots == room
            await send_what_fits(connected, encode_frame(3, 0, 1, (8).to_bytes(4)))
            await eventually(lambda: len(ended) == 1)
            in_flight.pop()
            await send_what_fits(connected, encode_call(MESSAGE, path=ONE, stream=101))
            await eventually(lambda: len(in_flight) == room)
        await served.wait_until_nothing_is_left(tasks)


class CallersLimit:
    """A handler that sleeps, and at most so many calls of each caller, whom the metadata names."""

    def __init__(self, calls: int) -> None:
        self.calls = calls
        self.in_flight: list[str] = []
        self.started = 0
        self.tasks_at_refusals: list[int] = []

    def identify(self, _method, metadata, _certificate, peer, arriving):
        name = dict(metadata).get("caller", "")
        caller = Caller(name, name or peer.rpartition(":")[0])
        if self.in_flight.count(caller.bucket) + arriving.get(caller.bucket, 0) < self.calls:
            return caller
        self.tasks_at_refusals.append(len(asyncio.all_tasks()))
        return to_grpc_status(BridgeError(Code.RESOURCE_EXHAUSTED, details_pb2.ERROR_REASON_OVERLOADED, "too many"))

    async def handle(self, rpc) -> None:
        bucket = rpc.caller.bucket
        self.in_flight.append(bucket)
        self.started += 1
        try:
            await asyncio.sleep(60)
        finally:
            self.in_flight.remove(bucket)


def encode_calls_of(name: bytes, numbers) -> bytes:
    return b"".join(encode_call(MESSAGE, (b"caller", name), path=ONE, stream=number) for number in numbers)


async def test_refusal_at_the_limit_of_a_caller_makes_no_task():
    limit = CallersLimit(1)
    async with serve(limit.handle, identify=limit.identify) as served:
        tasks = len(asyncio.all_tasks())
        async with hold_connections(served.address, http2.OPENING + encode_calls_of(b"a", [1])) as (connected,):
            await eventually(lambda: limit.in_flight == ["a"])
            with_call = len(asyncio.all_tasks())
            await send_what_fits(connected, encode_calls_of(b"a", range(3, 100, 2)) + PING)
            loop, found = asyncio.get_running_loop(), b""
            while PONG not in found:
                found += await loop.sock_recv(connected, 100_000)
            assert len(limit.tasks_at_refusals) == 49
            assert max(limit.tasks_at_refusals) <= with_call
            assert found.count(b"too many") == 49
            assert served.slots == 1
            assert find_reset(found) is None  # the requests were whole
            await send_what_fits(connected, encode_calls_of(b"b", [101]))
            await eventually(lambda: limit.in_flight == ["a", "b"])
        await served.wait_until_nothing_is_left(tasks)


async def test_call_that_is_refused_for_its_head_is_not_asked_who_makes_it():
    limit = CallersLimit(0)
    call = encode_call(MESSAGE, (b"grpc-timeout", b"soon"), path=ONE)
    async with serve(limit.handle, identify=limit.identify) as served:
        assert http2.parse_grpc_status(await exchange_bytes(served.address, http2.OPENING + call)) == 13
    assert limit.tasks_at_refusals == []


@pytest.mark.parametrize("connections", [1, 3])
async def test_burst_of_callers_starts_no_more_calls_than_there_is_room_for_theirs(connections):
    limit = CallersLimit(3)
    burst = encode_calls_of(b"a", range(1, 101, 2)) + encode_calls_of(b"b", range(101, 105, 2))
    async with serve(limit.handle, identify=limit.identify) as served:
        tasks = len(asyncio.all_tasks())
        links, transports = [], []
        for _ in range(connections):  # all of them in the same turn of the loop
            links.append(link := Link(served.engine.shared))
            transports.append(transport := FullTransport())
            link.connection_made(transport)
            link.data_received(http2.OPENING + burst)
        assert len(asyncio.all_tasks()) - tasks == 3 + min(3, 2 * connections)
        await eventually(lambda: len(limit.in_flight) == 3 + min(3, 2 * connections))
        assert limit.in_flight.count("a") == 3
        for link in links:
            link.connection_lost(None)
        await served.wait_until_nothing_is_left(tasks)
        async with hold_connections(served.address, http2.OPENING + burst):
            await eventually(lambda: sorted(limit.in_flight) == ["a"] * 3 + ["b"] * 2)


async def test_calls_that_end_in_any_way_count_for_their_caller_no_more():
    limit = CallersLimit(2)
    soon = encode_call(MESSAGE, (b"caller", b"a"), (b"grpc-timeout", b"50m"), path=ONE, stream=1)
    reset = encode_frame(3, 0, 3, (8).to_bytes(4))
    async with (
        serve(limit.handle, identify=limit.identify) as served,
        hold_connections(served.address, http2.OPENING + soon + encode_calls_of(b"a", [3])) as (connected,),
    ):
        await eventually(lambda: limit.started == 2)
        await send_what_fits(connected, reset + reset)
        await eventually(lambda: limit.in_flight == [] and served.calls == 0)
        assert limit.tasks_at_refusals == []
        await send_what_fits(connected, encode_calls_of(b"a", range(5, 15, 2)))
        await eventually(lambda: len(limit.tasks_at_refusals) == 3)
        await eventually(lambda: limit.in_flight == ["a", "a"])


async def test_caller_at_the_limit_who_cancels_a_call_has_room_for_another_one():
    limit = CallersLimit(2)
    async with (
        serve(limit.handle, identify=limit.identify) as served,
        hold_connections(served.address, http2.OPENING + encode_calls_of(b"a", [1, 3])) as (connected,),
    ):
        await eventually(lambda: limit.in_flight == ["a", "a"])
        await send_what_fits(connected, encode_frame(3, 0, 1, (8).to_bytes(4)) + encode_calls_of(b"a", [5, 7]))
        await eventually(lambda: len(limit.tasks_at_refusals) == 1)
        await eventually(lambda: served.calls == 2)
        assert limit.in_flight == ["a", "a"]
        await send_what_fits(connected, encode_calls_of(b"a", [9]))
        await eventually(lambda: len(limit.tasks_at_refusals) == 2)


async def test_call_that_is_cancelled_before_it_begins_counts_for_its_caller_no_more():
    limit = CallersLimit(1)
    async with serve(limit.handle, identify=limit.identify) as served:
        link, transport = Link(served.engine.shared), FullTransport()
        link.connection_made(transport)
        link.data_received(http2.OPENING + encode_calls_of(b"a", [1]))
        link.data_received(encode_frame(3, 0, 1, (8).to_bytes(4)) + encode_calls_of(b"a", [3]))
        assert limit.tasks_at_refusals == []
        await eventually(lambda: limit.in_flight == ["a"])
        link.data_received(encode_calls_of(b"a", [5]))
        assert len(limit.tasks_at_refusals) == 1
        link.connection_lost(None)


async def test_reader_that_stops_holds_up_nobody_else():
    async def handle(rpc) -> None:
        if rpc.method == "Many":
            while True:
                await rpc.send(bytes(100_000))
        await rpc.send(b"quick")
        rpc.end(0, "", ())

    stuck = b"".join(encode_headers(http2.encode_block(http2.build_fields(path=MANY)), number) for number in (1, 3, 5))
    async with (
        serve(handle) as served,
        hold_connections(served.address, http2.encode_opening(20_000) + stuck) as (connected,),
    ):
        loop, found = asyncio.get_running_loop(), b""
        while found.count(bytes(15_000)) < 3:
            found += await loop.sock_recv(connected, 100_000)
        await loop.sock_sendall(connected, encode_call(MESSAGE, path=ONE, stream=7))
        while b"quick" not in found:
            found += await loop.sock_recv(connected, 100_000)
        assert served.calls == 3


class FullTransport(asyncio.Transport):
    """A transport whose peer reads nothing, so that what is written stays in its buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_closed = self.is_aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def get_write_buffer_size(self) -> int:
        return len(self.written)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.is_closed = True

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_aborted = True


@contextlib.asynccontextmanager
async def close_with_an_answer_that_is_not_read(payload, *, abort_s=60.0, **settings):
    """Make a call over a connection, end both, and yield the transport that still has the answer."""
    async with serve(**settings) as served:
        link, transport = Link(served.engine.shared, abort_s=abort_s), FullTransport()
        link.connection_made(transport)
        link.data_received(http2.OPENING + payload)
        await eventually(lambda: transport.is_closed or b"hello" in transport.written)
        link.go_away()
        await eventually(lambda: transport.is_closed)
        yield transport
        link.connection_lost(None)


CALL = encode_call(MESSAGE, path=ONE)


async def test_connection_that_goes_away_waits_until_its_last_answer_is_read():
    async with close_with_an_answer_that_is_not_read(CALL, abort_s=0.0) as transport:
        await asyncio.sleep(0.05)
        assert not transport.is_aborted


async def test_caller_that_takes_nothing_of_its_last_answer_is_not_waited_for_without_end():
    async with close_with_an_answer_that_is_not_read(CALL, write_stall_timeout_s=0.05) as transport:
        await eventually(lambda: transport.is_aborted)


async def test_answer_is_not_taken_back_from_a_caller_who_sends_until_he_reads_it():
    answer = b"x" * 900_000

    async def reply(rpc: Rpc) -> None:
        await rpc.send(answer)
        rpc.end(0, "", ())
        answered.append(rpc)

    answered: list[Rpc] = []
    wide = encode_frame(4, 0, 0, b"\0\4\0\x20\0\0") + encode_frame(8, 0, 0, b"\0\x20\0\0")
    async with serve(reply) as served:
        with contextlib.closing(await connect(served.address)) as caller:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
            caller.sendall(http2.OPENING + wide + CALL)
            await eventually(lambda: answered)
            for link in list(served.engine.shared.links):
                link.go_away()
            for _ in range(20):
                with contextlib.suppress(OSError):
                    caller.send(encode_frame(6, 0, 0, bytes(8)))
                await asyncio.sleep(0.01)
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            received = b""
            while data := await asyncio.get_running_loop().sock_recv(caller, 1 << 20):
                received += data
    assert received.count(b"x") >= len(answer)
    assert b"grpc-status" in received


async def test_connection_that_ends_for_its_callers_fault_is_not_waited_for():
    payload = CALL + encode_frame(6, 0, 0, b"short")
    async with close_with_an_answer_that_is_not_read(payload, abort_s=0.0) as transport:
        await eventually(lambda: transport.is_aborted)


async def test_peer_is_written_as_grpc_writes_it():
    peers = []

    async def handle(rpc) -> None:
        peers.append(rpc.peer)
        rpc.end(0, "", ())

    async with serve(handle, listen="[::1]:0") as served:
        await exchange_bytes(served.address.replace("[::1]", "::1"), http2.OPENING + encode_call(MESSAGE, path=ONE))
    assert peers[0].startswith("ipv6:%5B::1%5D:")


async def test_caller_who_never_acknowledges_the_limits_is_cut_off():
    async with serve(connections={"settings_timeout_s": 0.05}) as served:
        for payload in (b"", http2.UNACKNOWLEDGED[:10], http2.UNACKNOWLEDGED):
            assert http2.find_goaway(await read_to_end(served.address, payload)) == 11
        assert served.misuses == ["settings_timeout"] * 3


async def test_caller_who_acknowledges_the_limits_is_kept():
    async with serve(connections={"settings_timeout_s": 0.05}) as served:
        links, transports = [], []
        for opening in (http2.OPENING, http2.UNACKNOWLEDGED):  # whose times end in this order
            links.append(link := Link(served.engine.shared))
            transports.append(transport := FullTransport())
            link.connection_made(transport)
            link.data_received(opening)
        await eventually(lambda: transports[1].is_closed)
        assert not transports[0].is_closed
        assert served.misuses == ["settings_timeout"]
        for link in links:
            link.connection_lost(None)


async def test_silent_caller_is_pinged_and_closed():
    async with serve(connections={"ping_s": 0.05, "ping_timeout_s": 0.05, "settings_timeout_s": 60}) as served:
        assert b"alive?" in await read_to_end(served.address, http2.OPENING)
        assert not served.engine.shared.links


async def read_to_end(address: str, payload: bytes) -> bytes:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(payload)
    answer = await reader.read()
    writer.close()
    return answer


# Abuse: the connection ends, the reason is counted, and no call, slot, byte or task is left


def repeat(make, count: int = 3000) -> bytes:
    return b"".join(make(number) for number in range(1, 2 * count, 2))


def start_and_reset(number: int) -> bytes:
    part = encode_frame(0, 0, number, MESSAGE[:-1])
    return encode_headers(HEAD, number) + part + encode_frame(3, 0, number, bytes(4))


def widen_by_one(_number: int) -> bytes:
    return encode_frame(8, 0, 1, (1).to_bytes(4))


HEAD = http2.encode_block(FIELDS)
HUGE_ENTRY = b"\x40\x01a\x7f\xd1\x1d" + bytes(3_920)
ABUSES = {
    "rapid reset": ("rapid_reset", repeat(lambda n: encode_headers(HEAD, n) + encode_frame(3, 0, n, bytes(4)))),
    "resets of calls with bodies": ("rapid_reset", repeat(start_and_reset)),
    "MadeYouReset": ("rapid_reset", repeat(lambda n: encode_headers(HEAD, n) + encode_frame(8, 0, n, bytes(4)))),
    "PING flood": ("control_flood", repeat(lambda _: encode_frame(6, 0, 0, bytes(8)))),
    "SETTINGS flood": ("control_flood", repeat(lambda _: encode_frame(4, 0, 0))),
    "PRIORITY flood": ("control_flood", repeat(lambda n: encode_frame(2, 0, n, bytes(5)))),
    "empty DATA flood": ("control_flood", encode_headers(HEAD) + repeat(lambda _: encode_frame(0, 0, 1))),
    "WINDOW_UPDATE flood": ("control_flood", encode_headers(HEAD) + repeat(widen_by_one)),
    "unknown frames": ("control_flood", repeat(lambda _: encode_frame(77, 0, 0))),
    "CONTINUATION flood": ("continuation_flood", encode_frame(1, 0, 1, HEAD) + encode_frame(9, 0, 1, b"") * 100),
    "HPACK bomb": ("header_bomb", encode_frame(1, 5, 1, HEAD + HUGE_ENTRY + b"\xbe" * 12_000)),
    "streams above the limit": ("rapid_reset", repeat(lambda n: encode_headers(HEAD, n))),
}  # fmt: skip


@pytest.mark.parametrize(("reason", "payload"), ABUSES.values(), ids=ABUSES)
async def test_abuse_ends_its_connection_and_leaves_nothing(reason, payload):
    running = 0

    async def handle(rpc) -> None:
        nonlocal running
        running += 1
        try:
            await rpc.receive()
            await asyncio.sleep(60)
        finally:
            running -= 1

    async with serve(handle, limits=Limits()) as served:
        await asyncio.sleep(0)
        tasks = len(asyncio.all_tasks())
        async with hold_connections(served.address, http2.OPENING) as (connected,):
            await eventually(lambda: len(served.engine.shared.links) == 1)
            await send_what_fits(connected, payload)
            await eventually(lambda: served.misuses == [reason])
            await eventually(lambda: not served.engine.shared.links)
        assert (running, served.calls, served.engine.shared.unread_bytes) == (0, 0, 0)
        await served.wait_until_nothing_is_left(tasks)


def refuse_all(_method: str, _arriving: int):
    return to_grpc_status(BridgeError(Code.RESOURCE_EXHAUSTED, details_pb2.ERROR_REASON_OVERLOADED, "full"))


@pytest.mark.parametrize("payload", [payload for _, payload in ABUSES.values()], ids=ABUSES)
async def test_abuse_of_a_bridge_that_is_full_leaves_nothing(payload):
    started = []

    async with serve(started.append, refuse=refuse_all) as served:
        await asyncio.sleep(0)
        tasks = len(asyncio.all_tasks())
        async with hold_connections(served.address, http2.OPENING) as (connected,):
            await send_what_fits(connected, payload + encode_frame(http2.PING, 0, 0, b"the last"))
            loop, found = asyncio.get_running_loop(), b""
            with contextlib.suppress(ConnectionError):
                while b"the last" not in found and (part := await loop.sock_recv(connected, 100_000)):
                    found += part
            assert served.misuses or b"the last" in found
            await served.wait_until_nothing_is_left(tasks)
        assert started == []


UNREAD = {
    "refused for want of room": (ONE, {"refuse": refuse_all}),
    "refused for want of room for their caller": (ONE, {"identify": CallersLimit(0).identify}),
    "refused by their head": (b"/test.Service/None", {}),
}


@pytest.mark.parametrize(("path", "hooks"), UNREAD.values(), ids=UNREAD)
async def test_caller_that_reads_no_answers_is_cut_off(path, hooks):
    head = encode_headers(http2.encode_block(http2.build_fields(path=path)), 1, END_STREAM)
    # So many streams that a burst meets no limit of theirs: each is answered as it comes.
    async with serve(**hooks, limits=Limits(streams_max=10_000, answer_bytes_max=1)) as served:
        tasks = len(asyncio.all_tasks())
        async with hold_connections(served.address, http2.OPENING) as (connected,):
            for start in range(1, 2_000_000, 2000):
                burst = b"".join(head[:5] + number.to_bytes(4) + head[9:] for number in range(start, start + 2000, 2))
                await send_what_fits(connected, burst)
                if served.misuses:
                    break
                await asyncio.sleep(0)
            await eventually(lambda: served.misuses == ["unread_answers"])
            await eventually(lambda: not served.engine.shared.links)
        await served.wait_until_nothing_is_left(tasks)


async def test_resets_within_reason_are_no_abuse_and_give_their_slots_back():
    cancelled = []

    async with (
        serve(make_sleeper(cancelled.append)) as served,
        hold_connections(served.address, http2.OPENING) as (connected,),
    ):
        for start in range(1, 1601, 200):
            numbers = range(start, start + 200, 2)
            await send_what_fits(connected, b"".join(encode_call(MESSAGE, path=ONE, stream=n) for n in numbers))
            await eventually(lambda: served.slots == 100)
            await send_what_fits(connected, b"".join(encode_frame(3, 0, n, bytes(4)) for n in numbers))
            await eventually(lambda: served.slots == 0)
        assert len(cancelled) == 800
        assert served.misuses == []


ENDS = {
    "a flood of PINGs": http2.OPENING + encode_frame(http2.PING, 0, 0, bytes(8)) * 20_000,
    "streams beyond all bounds": http2.OPENING
    + b"".join(encode_headers(http2.encode_block(FIELDS), 2 * number + 1) for number in range(3000)),
    "no HTTP/2": b"GET / HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("payload", ENDS.values(), ids=ENDS)
async def test_connection_that_was_ended_holds_nothing(payload):
    """Only a full collection would find what it held, and those are rare."""
    async with serve() as served:
        await exchange_bytes(served.address, payload)  # what is made once
        gc.collect()
        gc.disable()
        try:
            others = count_links()
            for _ in range(3):
                await exchange_bytes(served.address, payload)
            await eventually(lambda: not served.engine.shared.links)
            await eventually(lambda: count_links() <= others)
        finally:
            gc.enable()


def count_links() -> int:
    return sum(isinstance(each, Link) for each in gc.get_objects())
