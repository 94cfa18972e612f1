"""Health that tells the truth: of the bridge, and of the upstream where that is asked for."""

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bridge.core.reasons import SERVICE_NAME
from tests.conftest import chat

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize("service", ["", SERVICE_NAME])
async def test_health_follows_the_upstream_where_that_is_asked_for(start_bridge, emulator, service):
    bridge = await start_bridge(health={"upstream_period_s": 0.02, "upstream_failures": 3})
    watch = health_pb2_grpc.HealthStub(bridge.channel).Watch(health_pb2.HealthCheckRequest(service=service))
    assert (await watch.read()).status == SERVING
    await emulator.refuse()
    assert (await watch.read()).status == NOT_SERVING
    assert (await bridge.ask(chat("Hi"))).failure.reason == "UPSTREAM_UNREACHABLE"  # health is advice, no gate
    await emulator.accept()
    assert (await watch.read()).status == SERVING
    watch.cancel()


async def test_health_tells_of_the_bridge_alone_by_default(bridge, emulator):
    await emulator.refuse()
    assert (await bridge.ask(chat("Hi"))).failure.reason == "UPSTREAM_UNREACHABLE"
    stub = health_pb2_grpc.HealthStub(bridge.channel)
    assert (await stub.Check(health_pb2.HealthCheckRequest())).status == SERVING


async def test_health_is_never_refused(start_bridge, emulator):
    bridge = await start_bridge(calls_max=1, queue_max=0)
    call = bridge.stub.StreamChatCompletion(chat(model="scenario::stall?headers=0"))
    await emulator.next_exchange()
    assert (await bridge.ask(chat("Hi"))).failure.reason == "OVERLOADED"
    stub = health_pb2_grpc.HealthStub(bridge.channel)
    assert (await stub.Check(health_pb2.HealthCheckRequest())).status == SERVING
    call.cancel()
