"""Tests of bridge/server/native/arrivals.py: who is let in counts until the boundary knows of it."""

from bridge.core.errors import BridgeError, Code
from bridge.core.status import to_grpc_status
from bridge.server.native.arrivals import Arrivals
from bridge.server.rpc import Caller, RpcMethod
from ollmbridge.v1 import error_details_pb2 as details_pb2
from tests.unit.server.native.serving import MANY, ONE, echo

FULL = to_grpc_status(BridgeError(Code.RESOURCE_EXHAUSTED, details_pb2.ERROR_REASON_OVERLOADED, "full"))


class Room:
    """Room for some calls; `asked` has what was asked."""

    def __init__(self, calls: int) -> None:
        self.calls = calls
        self.asked: list[tuple[str, int]] = []

    def refuse(self, method: str, arriving: int):
        self.asked.append((method, arriving))
        return FULL if arriving >= self.calls else None


def make(room: Room) -> tuple[Arrivals, RpcMethod, RpcMethod]:
    one = RpcMethod("test.Service", "One", is_unary=True, handle=echo, refuse=room.refuse)
    many = RpcMethod("test.Service", "Many", is_unary=False, handle=echo)
    return Arrivals({ONE: one, MANY: many}), one, many


def test_requests_of_one_read_are_let_in_as_far_as_there_is_room():
    room = Room(2)
    arrivals, _, _ = make(room)
    answers = [arrivals.refuse(ONE) for _ in range(4)]
    assert answers[:2] == [None, None]
    assert b"full" in answers[2]
    assert answers[3] is answers[2]  # coded once
    assert room.asked == [("One", 0), ("One", 1), ("One", 2), ("One", 2)]


def test_calls_count_from_the_end_of_the_read_until_they_begin():
    room = Room(2)
    arrivals, one, many = make(room)
    for _ in range(2):
        assert arrivals.refuse(ONE) is None
    arrivals.end_read()
    arrivals.start(one, None)  # the other one was no call
    arrivals.start(many, None)  # nothing bounds these here
    assert arrivals.refuse(ONE) is None
    assert arrivals.refuse(ONE) is not None
    arrivals.end_read()
    arrivals.begin(one, None)
    arrivals.begin(many, None)
    arrivals.refuse(ONE)
    assert [arriving for _, arriving in room.asked] == [0, 1, 1, 2, 0]


def test_request_for_another_method_is_welcome_always():
    arrivals, _, _ = make(Room(0))
    assert arrivals.refuse(MANY) is None
    assert arrivals.refuse(b"/test.Service/None") is None
    assert arrivals.refuse(b"") is None
    assert arrivals.refuse(ONE) is not None


ALPHA, BETA = Caller("alpha", "name alpha"), Caller("", "peer ipv4:10.0.0.1")


def make_for_callers(limit: int) -> tuple[Arrivals, RpcMethod]:
    """Return arrivals of a method of which each caller may make so many calls; metadata names the caller."""

    def identify(_method, metadata, _certificate, _peer, arriving):
        caller = dict(metadata)["caller"]
        return FULL if caller is not None and arriving.get(caller.bucket, 0) >= limit else caller

    one = RpcMethod("test.Service", "One", is_unary=True, handle=echo, identify=identify)
    return Arrivals({ONE: one}), one


def test_calls_of_each_caller_are_let_in_as_far_as_there_is_room_for_theirs():
    arrivals, one = make_for_callers(2)

    def arrive(caller):
        found = arrivals.identify(one, [("caller", caller)], {}, "ipv4:10.0.0.1:2")
        if not isinstance(found, bytes):
            arrivals.start(one, found)
        return found

    assert [arrive(ALPHA), arrive(BETA), arrive(ALPHA), arrive(None)] == [ALPHA, BETA, ALPHA, None]
    answer = arrive(ALPHA)
    assert b"full" in answer
    assert arrive(ALPHA) is answer  # coded once
    assert arrive(BETA) is BETA
    arrivals.begin(one, ALPHA)
    assert arrive(ALPHA) is ALPHA


def test_cancelled_call_makes_room_until_it_has_ended():
    arrivals, one = make_for_callers(0)
    metadata = [("caller", ALPHA)]
    assert isinstance(arrivals.identify(one, metadata, {}, ""), bytes)
    arrivals.leave(ALPHA)
    assert arrivals.identify(one, metadata, {}, "") is ALPHA
    assert isinstance(arrivals.identify(one, [("caller", BETA)], {}, ""), bytes)
    arrivals.end(ALPHA)
    assert isinstance(arrivals.identify(one, metadata, {}, ""), bytes)


def test_nobody_is_looked_for_by_a_method_that_does_not_ask():
    arrivals, _, many = make(Room(0))
    assert arrivals.identify(many, [], {}, "") is None
