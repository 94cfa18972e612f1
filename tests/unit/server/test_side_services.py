"""Tests of bridge/server/side_services.py: health and reflection have limits of their own, and answer anything."""

import asyncio

import pytest
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from bridge.server.callers import Callers
from bridge.server.load import Load
from bridge.server.receiving import Receiving
from bridge.server.side_services import SideServices
from bridge.settings import Settings
from tests.unit.server.fake_rpc import FakeRpc

NOT_FOUND, INVALID_ARGUMENT, RESOURCE_EXHAUSTED, UNAUTHENTICATED = 5, 3, 8, 16


class Side:
    """The services under test; `start` starts a call of a method."""

    def __init__(self, **settings) -> None:
        made = Settings(**settings)
        services = SideServices(
            made, Callers(made), Receiving(made), health.aio.HealthServicer(), Load(made, int, float)
        )
        self.methods = {f"{method.service}/{method.name}": method for method in services.methods}

    def start(self, path: str, rpc: FakeRpc) -> asyncio.Task[None]:
        return asyncio.create_task(self.methods[path].handle(rpc))


CHECK, WATCH = "grpc.health.v1.Health/Check", "grpc.health.v1.Health/Watch"
REFLECT = [f"grpc.reflection.{version}.ServerReflection/ServerReflectionInfo" for version in ("v1", "v1alpha")]


class ManyRpc(FakeRpc):
    """A call with several messages."""

    def __init__(self, *messages: bytes, **options) -> None:
        super().__init__(None, **options)
        self.messages = [*messages]

    async def receive(self):
        return self.messages.pop(0) if self.messages else None


async def test_check_of_an_unknown_service_is_not_found():
    rpc = FakeRpc(health_pb2.HealthCheckRequest(service="nobody").SerializeToString())
    await Side().start(CHECK, rpc)
    assert (rpc.code, rpc.sent) == (NOT_FOUND, [])


@pytest.mark.parametrize("message", [b"", None], ids=["empty", "none"])
async def test_check_is_answered(message):
    rpc = FakeRpc(message)
    await Side().start(CHECK, rpc)
    assert rpc.code == 0
    assert [health_pb2.HealthCheckResponse.FromString(each).status for each in rpc.sent] == [1]


@pytest.mark.parametrize("path", [CHECK, WATCH, REFLECT[0]])
@pytest.mark.parametrize("message", [b"\xff", b"x" * 5000], ids=["undecodable", "too large"])
async def test_message_that_is_none_of_the_method_is_refused(path, message):
    rpc = ManyRpc(message)
    await Side().start(path, rpc)
    assert (rpc.code, rpc.sent) == (INVALID_ARGUMENT, [])


async def test_watches_are_bounded_and_free_their_slots():
    side = Side(calls_max=2)
    watches = [side.start(WATCH, FakeRpc(b"")) for _ in range(2)]
    await asyncio.sleep(0)
    over = FakeRpc(b"")
    await side.start(WATCH, over)
    assert over.code == RESOURCE_EXHAUSTED
    for watch in watches:
        watch.cancel()
    await asyncio.gather(*watches, return_exceptions=True)
    rpc = FakeRpc(b"")
    await side.start(CHECK, rpc)
    assert rpc.code == 0


@pytest.mark.parametrize("path", REFLECT)
async def test_reflection_answers_each_request(path):
    request = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
    rpc = ManyRpc(request, request)
    await Side().start(path, rpc)
    assert (rpc.code, len(rpc.sent)) == (0, 2)


def test_reflection_can_be_turned_off():
    assert set(Side(reflection=False).methods) == {CHECK, WATCH}


async def test_token_is_for_reflection_and_not_for_health(tmp_path):
    (tokens := tmp_path / "tokens").write_text("team-a alpha\n")
    tokens.chmod(0o600)
    side = Side(tokens_file=tokens, upstream={"api_key": "sk-own"})
    without, with_token, check = ManyRpc(), ManyRpc(metadata=(("authorization", "Bearer alpha"),)), FakeRpc(b"")
    for path, rpc in ((REFLECT[0], without), (REFLECT[0], with_token), (CHECK, check)):
        await side.start(path, rpc)
    assert (without.code, with_token.code, check.code) == (UNAUTHENTICATED, 0, 0)
