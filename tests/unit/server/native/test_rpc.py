"""Tests of bridge/server/native/rpc.py: a call's messages, its end and its deadline, over real connections."""

import asyncio

import pytest

from bridge.server.rpc import ClientDisconnectedError, RefusedByTransportError
from tests.kit import http2
from tests.kit.hostile import hold_connections
from tests.kit.waiting import eventually
from tests.unit.server.native.serving import MANY, ONE, echo, make_sleeper, serve

OK, UNIMPLEMENTED, INTERNAL, RESOURCE_EXHAUSTED, DEADLINE_EXCEEDED, UNKNOWN = 0, 12, 13, 8, 4, 2
MESSAGE = http2.encode_message(b"hello")


async def ask(address: str, body: bytes, *more: tuple[bytes, bytes], path: bytes = ONE) -> bytes:
    return await http2.exchange_bytes(address, http2.OPENING + http2.encode_call(body, *more, path=path))


CALLS = {
    "one message": (ONE, MESSAGE, OK),
    "no message": (ONE, b"", UNIMPLEMENTED),
    "two messages": (ONE, MESSAGE * 2, UNIMPLEMENTED),
    "a message and half": (ONE, MESSAGE + b"\0\0", UNIMPLEMENTED),
    "too large": (ONE, b"\0\x7f\0\0\0", RESOURCE_EXHAUSTED),
    "unknown flags": (ONE, b"\2\0\0\0\0", INTERNAL),
    "compressed without an encoding": (ONE, b"\1\0\0\0\0", INTERNAL),
    "many messages": (MANY, MESSAGE * 3, OK),
    "none of many": (MANY, b"", OK),
}


@pytest.mark.parametrize(("path", "body", "status"), CALLS.values(), ids=CALLS)
async def test_messages_of_a_call_are_counted_by_its_method(path, body, status):
    async with serve() as served:
        answer = await ask(served.address, body, path=path)
        assert http2.parse_grpc_status(answer) == status
        assert answer.count(MESSAGE) == (body.count(MESSAGE) if status == OK else 0)


async def test_first_of_many_messages_is_there_before_the_last():
    async with serve() as served:
        call = http2.encode_headers(http2.encode_block(http2.build_fields(path=MANY)))
        async with hold_connections(served.address, http2.OPENING + call + http2.encode_frame(0, 0, 1, MESSAGE)) as (
            connected,
        ):
            loop, found = asyncio.get_running_loop(), b""
            while MESSAGE not in found:
                found += await loop.sock_recv(connected, 1000)
            assert served.calls == 1


async def test_window_opens_for_a_message_larger_than_it():
    body = http2.encode_message(b"x" * 1_000_000)
    received = []

    async def handle(rpc) -> None:
        received.append(len(await rpc.receive()))
        rpc.end(0, "", ())

    async with serve(handle) as served, hold_connections(served.address, http2.OPENING) as (connected,):
        loop = asyncio.get_running_loop()
        head = http2.encode_headers(http2.encode_block(http2.build_fields(path=ONE)))
        await loop.sock_sendall(connected, head + http2.encode_data(body)[: 65_535 + 9 * 4])
        await eventually(lambda: served.calls == 1)
        # What is beyond the first window comes after its update, which has the rest of the message.
        found = b""
        while b"\0\0\4\x08\0\0\0\0\1" not in found:
            found += await loop.sock_recv(connected, 1000)
        await loop.sock_sendall(connected, http2.encode_data(body)[65_535 + 9 * 4 :])
        await eventually(lambda: received == [1_000_000])


LENGTHS = {"largest that fits": (65_530, 0), "larger": (65_531, 1), "much larger": (1_000_000, 1)}


@pytest.mark.parametrize(("size", "rooms"), LENGTHS.values(), ids=LENGTHS)
async def test_room_is_taken_once_for_a_message_that_exceeds_the_first_window(size, rooms):
    taken, received = [], []

    async def handle(rpc) -> None:
        async def take_room() -> None:
            taken.append(len(received))

        received.append(len(await rpc.receive(take_room)))
        rpc.end(0, "", ())

    body = http2.encode_message(bytes(size))
    async with serve(handle) as served, hold_connections(served.address, http2.OPENING) as (connected,):
        loop = asyncio.get_running_loop()
        head = http2.encode_headers(http2.encode_block(http2.build_fields(path=ONE)))
        await loop.sock_sendall(connected, head + http2.encode_frame(http2.DATA, 0, 1, body[:10]))
        await eventually(lambda: len(taken) == 1 if rooms else served.engine.shared.unread_bytes == 10)
        frames = [http2.encode_frame(http2.DATA, 0, 1, body[at : at + 16_000]) for at in range(10, 64_000, 16_000)]
        await loop.sock_sendall(connected, b"".join(frames))
        if not rooms:
            await eventually(lambda: served.engine.shared.unread_bytes == 64_010)
        await loop.sock_sendall(connected, http2.encode_data(body[64_010:]))
        await eventually(lambda: received == [size])
        assert served.engine.shared.unread_bytes == 0
    assert taken == [0] * rooms


async def test_window_stays_closed_until_there_is_room_and_the_call_may_end_meanwhile():
    ends = []

    async def handle(rpc) -> None:
        async def take_room() -> None:
            await asyncio.sleep(60)

        try:
            await rpc.receive(take_room)
        finally:
            ends.append(served.engine.shared.unread_bytes)

    async with serve(handle) as served:
        head = http2.encode_headers(http2.encode_block(http2.build_fields(path=ONE)))
        large = http2.encode_message(bytes(100_000))[:16_000]
        payload = http2.OPENING + head + http2.encode_frame(http2.DATA, 0, 1, large)
        answer = await http2.exchange_bytes(served.address, payload + http2.encode_frame(http2.PING, 0, 0, bytes(8)))
        assert [frame for frame in http2.split_frames(answer) if (frame.kind, frame.stream) == (8, 1)] == []
        await eventually(lambda: ends == [0])
        await served.wait_until_nothing_is_left(len(asyncio.all_tasks()))


async def test_call_ends_at_its_deadline_with_its_status():
    ends = []

    async with serve(make_sleeper(lambda rpc: ends.append(rpc.has_expired()))) as served:
        answer = await ask(served.address, MESSAGE, (b"grpc-timeout", b"100m"))
        assert http2.parse_grpc_status(answer) == DEADLINE_EXCEEDED
        await served.wait_until_nothing_is_left(len(asyncio.all_tasks()))
    assert ends == [True]


async def test_caller_who_leaves_cancels_its_call():
    ends = []

    async with serve(make_sleeper(lambda rpc: ends.append(rpc.has_expired()))) as served:
        async with hold_connections(served.address, http2.OPENING + http2.encode_call(MESSAGE, path=ONE)):
            await eventually(lambda: served.calls == 1)
        await eventually(lambda: ends == [False])
        await served.wait_until_nothing_is_left(len(asyncio.all_tasks()))


async def test_handler_that_fails_or_says_nothing_still_has_a_status():
    async def fail(rpc) -> None:
        if rpc.method == "One":
            raise ValueError("a bug")

    async with serve(fail) as served:
        for path in (ONE, MANY):
            assert http2.parse_grpc_status(await ask(served.address, MESSAGE, path=path)) == UNKNOWN
        await served.wait_until_nothing_is_left(len(asyncio.all_tasks()))


async def test_headers_come_before_the_first_message_or_before_the_status():
    async def handle(rpc) -> None:
        await rpc.send_headers([("x-one", "1")])
        await rpc.send_headers([("x-two", "2")])
        if rpc.method == "One":
            await rpc.send(b"reply")
        rpc.end(0, "", [("x-three", "3")])

    async with serve(handle) as served:
        for path in (ONE, MANY):
            answer = await ask(served.address, MESSAGE, path=path)
            places = [answer.index(name) for name in (b"x-one", b"x-two", b"grpc-status", b"x-three")]
            assert places == sorted(places)
            assert (b"reply" in answer) == (path == ONE)


async def test_handler_learns_why_it_gets_no_message_and_that_its_caller_has_left():
    errors = []

    async def handle(rpc) -> None:
        try:
            await rpc.receive()
        except RefusedByTransportError as error:
            errors.append(error.code)
        try:
            await rpc.send(b"x")
        except ClientDisconnectedError:
            errors.append("left")

    async with serve(handle) as served:
        await ask(served.address, b"\0\x7f\0\0\0")
        await eventually(lambda: errors == ["RESOURCE_EXHAUSTED", "left"])


async def test_sender_learns_of_each_part_that_the_caller_takes():
    parts, sent = [], []

    async def handle(rpc) -> None:
        await rpc.receive()
        await rpc.send(bytes(10_000), lambda: parts.append(1))
        sent.append(1)
        rpc.end(0, "", ())

    payload = http2.encode_opening(100) + http2.encode_call(MESSAGE, path=ONE)
    async with serve(handle) as served, hold_connections(served.address, payload) as (connected,):
        for count in range(1, 4):
            await eventually(lambda: served.calls == 1)
            update = http2.encode_frame(http2.WINDOW_UPDATE, 0, 1, (100).to_bytes(4))
            await asyncio.get_running_loop().sock_sendall(connected, update)
            await eventually(lambda count=count: len(parts) == count)
        assert sent == []


async def test_send_waits_for_the_callers_window_and_goes_on():
    sent = []

    async def handle(rpc) -> None:
        for _ in range(10):
            await rpc.send(bytes(10_000))
            sent.append(1)
        rpc.end(0, "", ())

    payload = http2.encode_opening(15_000) + http2.encode_call(MESSAGE, path=ONE)
    async with serve(handle) as served, hold_connections(served.address, payload) as (connected,):
        await eventually(lambda: len(sent) == 1)
        update = http2.encode_frame(8, 0, 1, (200_000).to_bytes(4)) + http2.encode_frame(8, 0, 0, (200_000).to_bytes(4))
        await asyncio.get_running_loop().sock_sendall(connected, update)
        await eventually(lambda: len(sent) == 10)


async def test_peer_and_timeout_are_told():
    told = []

    async def handle(rpc) -> None:
        told.append((rpc.peer.rpartition(":")[0], rpc.timeout_s, dict(rpc.metadata)["x-a"]))
        await echo(rpc)

    async with serve(handle) as served:
        await ask(served.address, MESSAGE, (b"grpc-timeout", b"5S"), (b"x-a", b"1"))
    assert told == [("ipv4:127.0.0.1", 5.0, "1")]
