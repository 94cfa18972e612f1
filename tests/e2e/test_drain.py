"""SIGTERM and SIGINT to a real process: what is in flight ends well or with a status, and the process ends with 0."""

import asyncio
import contextlib
import signal
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.conftest import chat, eventually, scenario
from tests.e2e.process import served

SIGNALS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
METHODS = pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])


async def watched(bridge):
    """Give a Health.Watch that has said SERVING."""
    watch = health_pb2_grpc.HealthStub(bridge.channel).Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    return watch


@SIGNALS
async def test_calls_in_flight_finish_and_new_ones_are_refused(emulator, number):
    async with served(emulator) as bridge:
        unary = asyncio.create_task(bridge.ask(scenario("slow?delay_s=0.7")))
        stream = asyncio.create_task(bridge.ask(scenario("slow?delay_s=0.1&chunk_delay_s=0.15"), stream=True))
        watch = await watched(bridge)
        for _ in range(2):
            await emulator.next_exchange()

        bridge.process.send_signal(number)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        for method in (False, True):
            failed = (await bridge.ask(chat(), stream=method)).failed
            assert failed.code == "UNAVAILABLE"
            assert failed.reason == "DRAINING"
            assert failed.info.domain == "ollmbridge"

        assert (await unary).text == "You said: hello there"
        assert (await stream).text == "You said: hello there"
        assert await bridge.ended() == 0
        assert len(emulator.exchanges) == 2


@SIGNALS
async def test_idle_process_ends_at_once(emulator, number):
    async with served(emulator) as bridge:
        assert (await bridge.ask(chat())).failure is None
        started = time.monotonic()
        bridge.process.send_signal(number)
        assert await bridge.ended() == 0
        assert time.monotonic() - started < 1.5
        assert (await bridge.ask(chat())).failed.code == "UNAVAILABLE"


@METHODS
async def test_caller_that_goes_on_calling_is_never_told_that_he_cancelled(emulator, stream):
    async def caller(bridge):
        """Call until nobody answers any more; give the reasons of the ends, or the code where there is none."""
        ends = set()
        while "UNAVAILABLE" not in ends:
            answer = await bridge.ask(chat(), stream=stream)
            if answer.failure is not None:
                ends.add(answer.failure.reason if answer.failure.details else answer.failure.code)
        return ends

    async with served(emulator) as bridge:
        callers = [asyncio.create_task(caller(bridge)) for _ in range(20)]
        await eventually(lambda: len(emulator.exchanges) > 100)
        bridge.process.send_signal(signal.SIGTERM)
        assert set().union(*await asyncio.gather(*callers)) == {"DRAINING", "UNAVAILABLE"}
        assert await bridge.ended() == 0


@METHODS
@pytest.mark.parametrize("name", ["stall?headers=0", "stall?after=2"])
async def test_call_that_outlives_the_grace_is_aborted_and_its_upstream_closed(emulator, name, stream):
    async with served(emulator, drain_grace_s=0.3) as bridge:
        asked = asyncio.create_task(bridge.ask(scenario(name), stream=stream))
        exchange = await emulator.next_exchange()
        if name == "stall?after=2":
            await eventually(lambda: exchange.status == 200)
        bridge.process.send_signal(signal.SIGTERM)
        signalled_at = time.monotonic()
        assert 0.25 < await exchange.wait_closed() - signalled_at < 0.6
        failed = (await asked).failed
        assert (failed.code, failed.reason) == ("ABORTED", "DRAINING")
        assert await bridge.ended() == 0


async def test_call_whose_reader_is_slow_does_not_hold_the_end_up(emulator):
    async with served(emulator, drain_grace_s=0.3) as bridge:
        call = bridge.stub.StreamChatCompletion(scenario("many?chunks=100000&bytes=1000"))
        await call.read()
        exchange = await emulator.next_exchange()
        sent = -1
        while sent != exchange.events_sent:
            sent = exchange.events_sent
            await asyncio.sleep(0.2)
        bridge.process.send_signal(signal.SIGTERM)
        signalled_at = time.monotonic()
        assert await exchange.wait_closed() - signalled_at < 0.6
        assert await bridge.ended() == 0
        assert time.monotonic() - signalled_at < 3
        with contextlib.suppress(grpc.aio.AioRpcError):
            while await call.read() is not grpc.aio.EOF:
                pass
        assert await call.code() in {grpc.StatusCode.ABORTED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


async def test_second_signal_leaves_at_once(emulator):
    async with served(emulator) as bridge:
        asked = asyncio.create_task(bridge.ask(scenario("stall?headers=0")))
        await emulator.next_exchange()
        watch = await watched(bridge)
        bridge.process.send_signal(signal.SIGTERM)
        await watch.read()
        bridge.process.send_signal(signal.SIGTERM)
        assert await bridge.ended() == 1
        assert (await asked).failure.code == "UNAVAILABLE"


async def test_calls_are_still_taken_while_balancers_look_away(emulator):
    """The drain's delay: NOT_SERVING already, and a call that comes is answered."""
    async with served(emulator, drain_delay_s=1) as bridge:
        watch = await watched(bridge)
        bridge.process.send_signal(signal.SIGTERM)
        await watch.read()
        assert (await bridge.ask(chat("Hello"))).failure is None
        assert await bridge.ended() == 0
