"""Tests of bridge/server/native/shared.py: counts for all connections together, each with its bound."""

from structlog.testing import capture_logs

from bridge.server.h2.frames import ErrorCode, Http2Error
from bridge.server.h2.limits import Limits
from bridge.server.native.shared import Shared
from bridge.server.rpc import RpcMethod
from bridge.settings import Settings
from tests.kit.waiting import eventually
from tests.unit.server.native.serving import Misuses, echo

MIB = 1024 * 1024


def make(misuses: Misuses | None = None, **connections: int) -> Shared:
    method = RpcMethod("test.Service", "One", is_unary=True, handle=echo)
    return Shared(Settings(connections=connections), [method], [misuses] if misuses else [], Limits())


async def test_methods_are_found_by_their_paths():
    assert set(make().routes) == {b"/test.Service/One"}


async def test_connections_have_a_bound():
    shared = make(connections_max=2)
    links = [object() for _ in range(3)]
    assert [shared.add(link) for link in links] == [True, True, False]
    shared.remove(links[2])
    shared.remove(links[0])
    assert shared.add(links[2])


async def test_unread_bytes_have_a_bound_and_can_always_be_given_back():
    shared = make(unread_bytes_max=MIB)
    assert shared.count_unread(MIB)
    assert not shared.count_unread(1)
    assert shared.count_unread(-1)
    assert shared.unread_bytes == MIB


async def test_misuse_is_counted_and_logged_in_sum():
    misuses = Misuses()
    shared = make(misuses)
    with capture_logs() as lines:
        for _ in range(3):
            shared.count_misuse(Http2Error(ErrorCode.ENHANCE_YOUR_CALM, "slow down", "rapid_reset"))
        assert misuses.reasons == ["rapid_reset"] * 3
        await eventually(lambda: bool(lines))
    assert [line["rapid_reset"] for line in lines] == [3]
