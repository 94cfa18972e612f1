"""Callers' connections: their age, their idle timeout, and the number of calls on one."""

import asyncio
import contextlib
import itertools

import pytest

from tests.kit import http2
from tests.kit.client import scenario
from tests.kit.waiting import WAIT_S

MAX_CONCURRENT_STREAMS = 3  # RFC 9113, 6.5.2


async def read_until_closed(address: str) -> bytes:
    """Open a connection without a call, and return what the server sends until it closes the connection.

    What it sends is acknowledged, as clients do.
    """
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(http2.UNACKNOWLEDGED)
    answer = b""
    async with asyncio.timeout(WAIT_S):
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                answer += (read := await http2.read_frame(reader))
                (frame,) = http2.split_frames(read)
                if frame.kind in {http2.SETTINGS, http2.PING} and not frame.flags & http2.ACK:
                    payload = frame.payload if frame.kind == http2.PING else b""
                    writer.write(http2.encode_frame(frame.kind, http2.ACK, 0, payload))
    writer.close()
    return answer


async def test_connection_without_a_call_is_closed_after_the_idle_timeout(start_bridge):
    bridge = await start_bridge(connections={"idle_s": 0.3})
    answer = await read_until_closed(bridge.address)
    assert answer.endswith(b"connection idle")  # the GOAWAY's text


async def test_connection_past_its_age_gets_no_new_calls_and_its_calls_go_on(start_bridge, emulator):
    bridge = await start_bridge(connections={"age_s": 0.4, "age_grace_s": 10})
    answers = await asyncio.gather(
        *(bridge.ask(scenario("pace?chunks=20&interval_ms=60"), stream=True) for _ in range(3))
    )
    assert [len(answer.chunks) for answer in answers] == [22, 22, 22]
    first = {record.peer for record in bridge.records.all}
    await bridge.ask(scenario("plain"))
    assert {record.peer for record in bridge.records.all} - first, "expected another connection after the age"


async def test_call_ends_when_the_grace_of_its_connection_is_over(start_bridge):
    bridge = await start_bridge(connections={"age_s": 0.3, "age_grace_s": 0.3})
    answer = await bridge.ask(scenario("pace?chunks=100&interval_ms=100"), stream=True)
    assert answer.failure.code == "UNAVAILABLE"  # grpc's core ends it, not the bridge
    assert (await bridge.records.next()).code == "CANCELLED"


async def test_ages_vary_so_that_clients_reconnect_one_by_one(start_bridge):
    """With equal ages, connections are closed in the order in which they were opened."""
    bridge = await start_bridge(connections={"age_s": 5, "age_grace_s": 0.1})  # each between 4.5 and 5.5 s
    closed = []

    async def hold(number: int) -> None:
        await read_until_closed(bridge.address)
        closed.append(number)

    await asyncio.gather(*(hold(number) for number in range(20)))
    inversions = sum(earlier > later for earlier, later in itertools.combinations(closed, 2))
    assert inversions > 30  # of 190; by chance half of them


@pytest.mark.parametrize("streams_max", [2, 1000])
async def test_connection_announces_its_limit_of_concurrent_calls(start_bridge, streams_max):
    bridge = await start_bridge(connections={"streams_max": streams_max})
    answer = await http2.exchange_bytes(
        bridge.address, http2.OPENING + http2.encode_frame(http2.PING, 0, 0, b"12345678")
    )
    first = next(http2.split_frames(answer))
    assert first.kind == http2.SETTINGS
    assert MAX_CONCURRENT_STREAMS.to_bytes(2) + streams_max.to_bytes(4) in first.payload


@pytest.mark.parametrize("streams_max", [2, 100])
async def test_calls_above_the_limit_of_a_connection_wait_at_the_caller(start_bridge, emulator, streams_max):
    """A slot is free once its call has ended, though grpc.aio still holds the call (grpc_aio.py, row 16)."""
    bridge = await start_bridge(connections={"streams_max": streams_max})
    await bridge.ask(scenario("plain"))  # from now on the caller knows the limit
    for _ in range(2):
        answers = await asyncio.gather(*(bridge.ask(scenario("plain")) for _ in range(2 * streams_max)))
        assert [answer.failure for answer in answers if answer.failure is not None] == []
    assert len(emulator.exchanges) == 1 + 4 * streams_max
