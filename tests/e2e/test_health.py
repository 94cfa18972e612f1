"""grpc.health.v1: the state of the bridge, and of the upstream if the settings ask for it."""

import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bridge.core.reasons import SERVICE_NAME
from tests.kit.client import chat
from tests.kit.http2 import hold_stalled_watch
from tests.kit.waiting import WAIT_S

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize("service", ["", SERVICE_NAME])
async def test_health_follows_the_upstream_if_the_settings_ask_for_it(start_bridge, emulator, service):
    bridge = await start_bridge(health={"upstream_period_s": 0.02, "upstream_failures": 3})
    watch = health_pb2_grpc.HealthStub(bridge.channel).Watch(health_pb2.HealthCheckRequest(service=service))
    assert (await watch.read()).status == SERVING
    await emulator.refuse()
    assert (await watch.read()).status == NOT_SERVING
    assert (await bridge.ask(chat("Hi"))).failure.reason == "UPSTREAM_UNREACHABLE"  # health does not stop calls
    await emulator.accept()
    assert (await watch.read()).status == SERVING
    watch.cancel()


async def test_watch_reaches_others_beside_a_caller_that_reads_nothing(start_bridge, emulator):
    bridge = await start_bridge(health={"upstream_period_s": 0.02, "upstream_failures": 1})
    stub = health_pb2_grpc.HealthStub(bridge.channel)
    async with asyncio.timeout(WAIT_S), hold_stalled_watch(bridge.address):
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        await emulator.refuse()
        assert (await watch.read()).status == NOT_SERVING
        watch.cancel()


async def test_health_is_that_of_the_bridge_alone_by_default(bridge, emulator):
    await emulator.refuse()
    assert (await bridge.ask(chat("Hi"))).failure.reason == "UPSTREAM_UNREACHABLE"
    stub = health_pb2_grpc.HealthStub(bridge.channel)
    assert (await stub.Check(health_pb2.HealthCheckRequest())).status == SERVING


async def test_health_check_is_answered_beside_watches_that_hold_all_their_slots(start_bridge):
    bridge = await start_bridge(calls_max=1)
    stub = health_pb2_grpc.HealthStub(bridge.channel)
    async with hold_stalled_watch(bridge.address):
        over = stub.Watch(health_pb2.HealthCheckRequest(), timeout=WAIT_S)
        assert await over.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == SERVING


async def test_health_check_is_answered_at_the_limit_of_calls(start_bridge, emulator):
    bridge = await start_bridge(calls_max=1, queue_max=0)
    call = bridge.stub.StreamChatCompletion(chat(model="scenario::stall?headers=0"))
    await emulator.next_exchange()
    assert (await bridge.ask(chat("Hi"))).failure.reason == "OVERLOADED"
    stub = health_pb2_grpc.HealthStub(bridge.channel)
    assert (await stub.Check(health_pb2.HealthCheckRequest())).status == SERVING
    call.cancel()
