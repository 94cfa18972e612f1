"""SIGTERM and SIGINT to a real process: calls in flight finish or get a status, and the process ends with 0."""

import asyncio
import signal

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.kit.bridges import SERVER_ENGINE, start_bridge_process
from tests.kit.client import chat, read_to_the_end, scenario
from tests.kit.http2 import hold_stalled_watch
from tests.kit.waiting import eventually
from tests.kit.windows import wait_for_backpressure


async def watch_health(bridge):
    """Return a Health.Watch that has returned SERVING."""
    watch = health_pb2_grpc.HealthStub(bridge.channel).Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    return watch


async def test_calls_in_flight_finish_and_new_ones_are_refused(emulator):
    async with start_bridge_process(emulator) as bridge:
        unary = asyncio.create_task(bridge.ask(scenario("slow?delay_s=0.5")))
        stream = asyncio.create_task(bridge.ask(scenario("slow?delay_s=0.1&chunk_delay_s=0.15"), stream=True))
        stalled = bridge.stub.CreateChatCompletion(scenario("stall?headers=0"))  # so that the process keeps draining
        watch = await watch_health(bridge)
        for _ in range(3):
            await emulator.next_exchange()

        bridge.process.send_signal(signal.SIGTERM)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        served = 0
        for method in (False, True):
            # The native engine serves calls until their caller knows that it has to call elsewhere.
            while (failure := (await bridge.ask(chat(), stream=method)).failure) is None:
                served += 1
            assert failure.code == "UNAVAILABLE"
            assert failure.reason == "DRAINING"
            assert failure.info.domain == "ollmbridge"

        assert (await unary).text == "You said: hello there"
        assert (await stream).text == "You said: hello there"
        stalled.cancel()
        assert await bridge.wait_for_exit() == 0
        assert len(emulator.exchanges) == 3 + served
        assert not served or SERVER_ENGINE == "native"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
async def test_idle_process_does_not_wait_for_the_grace(emulator, number):
    async with start_bridge_process(emulator, drain_grace_s=600) as bridge:
        assert (await bridge.ask(chat())).failure is None
        bridge.process.send_signal(number)
        assert await bridge.wait_for_exit() == 0
        assert (await bridge.ask(chat())).failure.code == "UNAVAILABLE"


async def test_calls_during_the_drain_never_end_as_cancelled(emulator):
    async def call_until_unavailable(bridge, stream):
        """Return the reasons of the failures, or the codes of those without a reason."""
        ends = set()
        while "UNAVAILABLE" not in ends:
            answer = await bridge.ask(chat(), stream=stream)
            if answer.failure is not None:
                ends.add(answer.failure.reason if answer.failure.details else answer.failure.code)
        return ends

    async with start_bridge_process(emulator) as bridge:
        callers = [asyncio.create_task(call_until_unavailable(bridge, bool(number % 2))) for number in range(20)]
        await eventually(lambda: len(emulator.exchanges) > 100)
        bridge.process.send_signal(signal.SIGTERM)
        ends = set().union(*await asyncio.gather(*callers))
        # Engines that tell callers to go away first may have no call to refuse.
        assert ends - {"DRAINING"} == {"UNAVAILABLE"}
        assert await bridge.wait_for_exit() == 0


async def test_calls_in_flight_after_the_grace_are_aborted_and_their_upstream_connections_closed(emulator):
    async with start_bridge_process(emulator, drain_grace_s=0.3) as bridge:
        calls = [
            asyncio.create_task(bridge.ask(scenario(name), stream=stream))
            for name in ("stall?headers=0", "stall?after=2")
            for stream in (False, True)
        ]
        exchanges = [await emulator.next_exchange() for _ in calls]
        await eventually(lambda: [exchange.status for exchange in exchanges].count(200) == 2)
        bridge.process.send_signal(signal.SIGTERM)
        for exchange in exchanges:
            await exchange.wait_closed()
        failures = [(await call).failure for call in calls]
        assert [(failure.code, failure.reason) for failure in failures] == [("ABORTED", "DRAINING")] * 4
        assert await bridge.wait_for_exit() == 0


async def test_slow_reader_does_not_delay_the_exit(emulator):
    async with start_bridge_process(emulator, drain_grace_s=0.3) as bridge:
        call = bridge.stub.StreamChatCompletion(scenario("many?chunks=100000&bytes=1000"))
        await call.read()
        exchange = await emulator.next_exchange()
        await wait_for_backpressure(exchange)
        bridge.process.send_signal(signal.SIGTERM)
        await exchange.wait_closed()
        assert await bridge.wait_for_exit() == 0
        await read_to_the_end(call)
        assert await call.code() in {grpc.StatusCode.ABORTED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


async def test_watcher_that_reads_nothing_does_not_delay_the_drain(emulator):
    async with start_bridge_process(emulator, drain_grace_s=0.3) as bridge, hold_stalled_watch(bridge.address):
        watch = await watch_health(bridge)
        bridge.process.send_signal(signal.SIGTERM)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await bridge.wait_for_exit() == 0


async def test_second_signal_ends_the_process_without_the_grace(emulator):
    async with start_bridge_process(emulator, drain_grace_s=600) as bridge:
        call = asyncio.create_task(bridge.ask(scenario("stall?headers=0")))
        await emulator.next_exchange()
        watch = await watch_health(bridge)
        bridge.process.send_signal(signal.SIGTERM)
        await watch.read()
        bridge.process.send_signal(signal.SIGTERM)
        assert await bridge.wait_for_exit() == 1
        assert (await call).failure.code == "UNAVAILABLE"


async def test_calls_are_accepted_during_the_drain_delay(emulator):
    """Load balancers see NOT_SERVING and remove the instance while it still answers."""
    async with start_bridge_process(emulator, drain_delay_s=600) as bridge:
        watch = await watch_health(bridge)
        bridge.process.send_signal(signal.SIGTERM)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert (await bridge.ask(chat("Hello"))).failure is None
        bridge.process.send_signal(signal.SIGTERM)
        assert await bridge.wait_for_exit() == 1
