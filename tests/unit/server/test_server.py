"""Tests of bridge/server/server.py: what stands beside the chat service, and what can't be served."""

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from bridge.server.server import run_server
from bridge.settings import Settings, SettingsError
from tests.kit.client import chat, scenario
from tests.kit.processes import find_free_port, has_ipv6

SERVICE = "ollmbridge.v1.ChatCompletionService"


@pytest.mark.parametrize("name", ["", SERVICE])
async def test_health_is_serving_for_all_and_for_the_service(bridge, name):
    answer = await health_pb2_grpc.HealthStub(bridge.channel).Check(health_pb2.HealthCheckRequest(service=name))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_health_of_an_unknown_service_is_not_found(bridge):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health_pb2_grpc.HealthStub(bridge.channel).Check(health_pb2.HealthCheckRequest(service="nobody"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_health_and_reflection_are_outside_the_limit_of_calls(start_bridge, emulator):
    bridge = await start_bridge(calls_max=1)
    call = bridge.stub.CreateChatCompletion(scenario("stall?headers=0"))
    await emulator.next_exchange()
    assert (await bridge.ask(chat())).failure.reason == "OVERLOADED"
    answer = await health_pb2_grpc.HealthStub(bridge.channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert SERVICE in await list_services(bridge)
    call.cancel()


async def list_services(bridge) -> list[str]:
    stub = reflection_pb2_grpc.ServerReflectionStub(bridge.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    async for answer in stub.ServerReflectionInfo(iter([request])):
        return [service.name for service in answer.list_services_response.service]
    return []


async def test_reflection_lists_every_service(bridge):
    assert set(await list_services(bridge)) == {
        SERVICE,
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }


async def test_reflection_knows_the_messages(bridge):
    stub = reflection_pb2_grpc.ServerReflectionStub(bridge.channel)
    request = reflection_pb2.ServerReflectionRequest(file_containing_symbol="ollmbridge.v1.UpstreamError")
    answers = [answer async for answer in stub.ServerReflectionInfo(iter([request]))]
    assert [answer.WhichOneof("message_response") for answer in answers] == ["file_descriptor_response"]


async def test_unknown_method_is_unimplemented(bridge):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await bridge.channel.unary_unary(f"/{SERVICE}/Nothing")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_port_that_is_taken_cannot_be_used(bridge):
    with pytest.raises(SettingsError, match=f"listen: expected an address that can be bound, found '{bridge.address}'"):
        async with run_server(Settings(listen=bridge.address)):
            pass


async def test_host_that_is_not_here_cannot_be_used():
    with pytest.raises(SettingsError, match="listen: expected an address that can be bound"):
        async with run_server(Settings(insecure=True, listen="192.0.2.1:0")):
            pass


BAD_UPSTREAMS = {
    "name of one hop": ({"forward_metadata": ["connection"]}, "connection"),
    "upper case": ({"forward_metadata": ["X-Team"]}, "X-Team"),
    "deadline in a header of the bridge": ({"deadline_header": "x-request-id"}, "upstream.deadline_header: expected"),
    "cookie": ({"return_headers": ["set-cookie"]}, "set-cookie"),
    "key file": ({"api_key_file": "/nowhere/key"}, "api_key_file"),
}


@pytest.mark.parametrize(("upstream", "named"), BAD_UPSTREAMS.values(), ids=BAD_UPSTREAMS)
async def test_settings_that_only_the_start_can_check_name_what_is_wrong(upstream, named):
    with pytest.raises(SettingsError, match=named):
        async with run_server(Settings(listen="127.0.0.1:0", upstream=upstream)):
            pass


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
async def test_ipv6_address_is_given_as_it_can_be_dialled(emulator):
    async with (
        run_server(Settings(listen="[::1]:0", upstream={"base_url": emulator.url})) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())


async def test_two_servers_one_after_the_other_use_the_same_port(emulator):
    free = f"127.0.0.1:{find_free_port()}"  # that no system gives to others meanwhile
    async with run_server(Settings(listen=free, upstream={"base_url": emulator.url})) as address:
        pass
    async with run_server(Settings(listen=address, upstream={"base_url": emulator.url})) as again:
        assert again == address
