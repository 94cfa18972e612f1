"""How long callers' connections last, and how much goes over one."""

import asyncio

import pytest

from tests.conftest import scenario
from tests.e2e import frames

MAX_CONCURRENT_STREAMS = 3  # RFC 9113, 6.5.2


async def closed_after(address: str, said: bytes = frames.OPENING) -> tuple[float, bytes]:
    """Say no more than this, and give after how many seconds the server closed the connection, and what it had said."""
    loop = asyncio.get_running_loop()
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    began_at = loop.time()
    writer.write(said)
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    return loop.time() - began_at, answer


async def test_connection_without_a_call_is_closed_when_it_has_been_idle(start_bridge):
    bridge = await start_bridge(connections={"idle_s": 0.3})
    lasted_s, answer = await closed_after(bridge.address)
    assert lasted_s >= 0.25
    assert answer.endswith(b"connection idle")  # the GOAWAY's text


async def test_connection_past_its_age_is_left_while_its_calls_go_on(start_bridge, emulator):
    bridge = await start_bridge(connections={"age_s": 0.4, "age_grace_s": 10})
    answers = await asyncio.gather(
        *(bridge.ask(scenario("pace?chunks=20&interval_ms=60"), stream=True) for _ in range(3))
    )
    assert [len(answer.chunks) for answer in answers] == [22, 22, 22]
    first = {record.peer for record in bridge.records.all}
    await bridge.ask(scenario("plain"))
    assert {record.peer for record in bridge.records.all} - first, "expected another connection after the age"


async def test_call_that_outlives_the_grace_of_its_connection_ends(start_bridge):
    bridge = await start_bridge(connections={"age_s": 0.3, "age_grace_s": 0.3})
    answer = await bridge.ask(scenario("pace?chunks=100&interval_ms=100"), stream=True)
    assert answer.failed.code == "UNAVAILABLE"  # grpc's core ends it; the bridge is not asked
    assert (await bridge.records.next()).code == "CANCELLED"


async def test_ages_differ_by_a_tenth_so_that_clients_come_back_one_by_one(start_bridge):
    bridge = await start_bridge(connections={"age_s": 1, "age_grace_s": 0.1})
    lasted = [lasted_s for lasted_s, _ in await asyncio.gather(*(closed_after(bridge.address) for _ in range(20)))]
    assert max(lasted) - min(lasted) > 0.03
    assert min(lasted) > 0.85


@pytest.mark.parametrize("streams_max", [2, 1000])
async def test_connection_says_how_many_calls_it_takes_at_once(start_bridge, streams_max):
    bridge = await start_bridge(connections={"streams_max": streams_max})
    answer = await frames.heard(bridge.address, frames.OPENING + frames.frame(frames.PING, 0, 0, b"12345678"))
    assert answer[3] == frames.SETTINGS
    assert MAX_CONCURRENT_STREAMS.to_bytes(2) + streams_max.to_bytes(4) in answer[9 : 9 + int.from_bytes(answer[:3])]


async def test_calls_over_the_limit_of_a_connection_wait_at_the_caller_or_are_refused_unheard(start_bridge, emulator):
    bridge = await start_bridge(connections={"streams_max": 2})
    answers = await asyncio.gather(*(bridge.ask(scenario("plain")) for _ in range(20)))
    refused = [answer.failed for answer in answers if answer.failure is not None]
    assert {failed.code for failed in refused} <= {"UNAVAILABLE"}
    assert all("RST_STREAM with error code 7" in failed.message for failed in refused)  # REFUSED_STREAM
    assert len(emulator.exchanges) == 20 - len(refused) > 0
