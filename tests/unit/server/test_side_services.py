"""Tests of bridge/server/side_services.py: health and reflection have limits of their own, and answer anything."""

import asyncio

import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from bridge.server import orca
from bridge.server.callers import Callers
from bridge.server.health import Health
from bridge.server.load import Load
from bridge.server.receiving import Receiving
from bridge.server.side_services import SideServices
from bridge.settings import Settings
from tests.kit.waiting import eventually
from tests.unit.server.fake_rpc import FakeRpc

NOT_FOUND, INVALID_ARGUMENT, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, UNAUTHENTICATED = 5, 3, 4, 8, 16
SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3


class Side:
    """The services under test; `start` starts a call of a method."""

    def __init__(self, **settings) -> None:
        made = Settings(**settings)
        self.health = Health(made.health)
        self.health.start()
        services = SideServices(made, Callers(made), Receiving(made), self.health, Load(made, int, float))
        self.methods = {f"{method.service}/{method.name}": method for method in services.methods}

    def start(self, path: str, rpc: FakeRpc) -> asyncio.Task[None]:
        return asyncio.create_task(self.methods[path].handle(rpc))


LOAD = f"{orca.SERVICE}/{orca.METHOD}"
CHECK, WATCH = "grpc.health.v1.Health/Check", "grpc.health.v1.Health/Watch"
REFLECT = [f"grpc.reflection.{version}.ServerReflection/ServerReflectionInfo" for version in ("v1", "v1alpha")]


LIST_SERVICES = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()


class ManyRpc(FakeRpc):
    """A call with several messages."""

    def __init__(self, *messages: bytes, **options) -> None:
        super().__init__(None, **options)
        self.messages = [*messages]

    async def receive(self, _take_room=None):
        return self.messages.pop(0) if self.messages else None


def read_statuses(rpc: FakeRpc) -> list[int]:
    return [health_pb2.HealthCheckResponse.FromString(each).status for each in rpc.sent]


async def test_check_of_an_unknown_service_is_not_found():
    rpc = FakeRpc(health_pb2.HealthCheckRequest(service="nobody").SerializeToString())
    await Side().start(CHECK, rpc)
    assert (rpc.code, rpc.sent) == (NOT_FOUND, [])


@pytest.mark.parametrize("message", [b"", None], ids=["empty", "none"])
async def test_check_is_answered(message):
    rpc = FakeRpc(message)
    await Side().start(CHECK, rpc)
    assert rpc.code == 0
    assert read_statuses(rpc) == [SERVING]


@pytest.mark.parametrize("path", [CHECK, WATCH, REFLECT[0]])
@pytest.mark.parametrize("message", [b"\xff", b"x" * 5000], ids=["undecodable", "too large"])
async def test_message_that_is_none_of_the_method_is_refused(path, message):
    rpc = ManyRpc(message)
    await Side().start(path, rpc)
    assert (rpc.code, rpc.sent) == (INVALID_ARGUMENT, [])


async def test_watch_tells_each_change_also_beside_one_that_reads_nothing():
    side = Side()
    stalled, unknown, rpc = FakeRpc(b""), FakeRpc(b"\x0a\x01x"), FakeRpc(b"")
    stalled.writable.clear()
    watches = [side.start(WATCH, each) for each in (stalled, unknown, rpc)]
    await eventually(lambda: read_statuses(rpc) == [SERVING])
    side.health.drain()
    await eventually(lambda: read_statuses(rpc) == [SERVING, NOT_SERVING])
    assert (stalled.sent, read_statuses(unknown)) == ([], [SERVICE_UNKNOWN])
    stalled.writable.set()
    await eventually(lambda: read_statuses(stalled) == [SERVING, NOT_SERVING])
    assert not any(watch.done() for watch in watches)
    for watch in watches:
        watch.cancel()


@pytest.mark.parametrize("path", [CHECK, WATCH, REFLECT[0], LOAD])
async def test_caller_that_reads_nothing_is_ended_by_the_write_timeout(path):
    side = Side(write_stall_timeout_s=0.01, load_reports=["stream"])
    message = LIST_SERVICES if path == REFLECT[0] else b""
    rpc = ManyRpc(message)
    rpc.writable.clear()
    await side.start(path, rpc)
    assert (rpc.code, rpc.sent) == (DEADLINE_EXCEEDED, [])


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
    watch = side.start(WATCH, rpc)
    await eventually(lambda: rpc.sent)
    watch.cancel()


class OpenRpc(FakeRpc):
    """A call whose message never comes."""

    async def receive(self, _take_room=None):
        await asyncio.get_running_loop().create_future()


STREAMS = (WATCH, LOAD, REFLECT[0])


@pytest.mark.parametrize("others", STREAMS)
@pytest.mark.parametrize("path", [CHECK, *STREAMS])
async def test_streams_that_never_end_take_the_slots_of_no_other_method(path, others):
    side = Side(calls_max=2, calls_per_caller_max=2, load_reports=["stream"])
    held = [side.start(others, OpenRpc(b"")) for _ in range(2)]
    await asyncio.sleep(0)
    rpc = ManyRpc(LIST_SERVICES if path == REFLECT[0] else b"")
    call = side.start(path, rpc)
    if path == others:
        await call
        assert (rpc.code, rpc.sent) == (RESOURCE_EXHAUSTED, [])
    else:
        await eventually(lambda: rpc.sent)
    for each in (call, *held):
        each.cancel()


async def test_check_is_answered_beside_checks_that_wait_for_their_callers():
    side = Side(calls_max=2)
    unread = FakeRpc(b"")
    unread.writable.clear()
    waiting = [unread, OpenRpc(b"")]
    held = [side.start(CHECK, each) for each in waiting]
    await asyncio.sleep(0)
    rpc = FakeRpc(b"")
    await side.start(CHECK, rpc)
    assert read_statuses(rpc) == [SERVING]
    await held[0]
    assert (unread.code, unread.sent) == (RESOURCE_EXHAUSTED, [])
    assert waiting[1].ended is None
    held[1].cancel()


@pytest.mark.parametrize("path", REFLECT)
async def test_reflection_answers_each_request(path):
    rpc = ManyRpc(LIST_SERVICES, LIST_SERVICES)
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
