"""Tests of bridge/server/native/requests.py: what becomes of a request, the cheapest reason first."""

import pytest

from bridge.server.h2.headers import Request
from bridge.server.h2.limits import Limits
from bridge.server.native import answers
from bridge.server.native.requests import Accepted, Refused, judge
from bridge.server.native.shared import Shared
from bridge.server.rpc import RpcMethod
from bridge.settings import Settings
from tests.unit.server.native.serving import echo

PATH = b"/test.Service/One"
HEADERS = [(b"te", b"trailers"), (b"content-type", b"application/grpc"), (b"grpc-timeout", b"5S"), (b"x-a", b"1")]


def ask(request: Request | None) -> Accepted | Refused:
    method = RpcMethod("test.Service", "One", True, echo)
    return judge(request, Shared(Settings(), [method], [], Limits()))


def build(path: bytes = PATH, method: bytes = b"POST", **changed: bytes | None) -> Request:
    changes = {name.replace("_", "-").encode(): value for name, value in changed.items()}
    headers = [(name, changes.pop(name, value)) for name, value in HEADERS]
    return Request(method, path, [each for each in [*headers, *changes.items()] if each[1] is not None], None)


async def test_call_has_its_method_and_its_head():
    accepted = ask(build())
    assert isinstance(accepted, Accepted)
    assert (accepted.route.name, accepted.head.timeout_s, accepted.head.metadata) == ("One", 5.0, [("x-a", "1")])


@pytest.mark.parametrize("kind", [b"Application/Grpc", b"APPLICATION/GRPC+Proto; a=b"])
async def test_media_type_is_the_same_in_upper_case(kind):
    assert isinstance(ask(build(content_type=kind)), Accepted)


REFUSED = {
    "headers too large": (None, answers.TOO_LARGE),
    "unknown method": (build(b"/test.Service/Two"), answers.UNKNOWN_METHOD),
    "no te": (build(te=None), answers.NO_TRAILERS),
    "HEAD, whose answer has no content": (build(method=b"HEAD"), answers.PlainAnswer.NOT_POST),
}


@pytest.mark.parametrize(("request_", "block"), REFUSED.values(), ids=REFUSED)
async def test_request_is_refused_with_a_block_that_is_there(request_, block):
    assert ask(request_) == Refused(block)


PLAIN = {
    "GET": (build(method=b"GET"), answers.PlainAnswer.NOT_POST),
    "no content-type": (build(content_type=None), answers.PlainAnswer.NOT_GRPC),
    "another format": (build(content_type=b"application/grpc+json"), answers.PlainAnswer.NOT_GRPC),
}


@pytest.mark.parametrize(("request_", "block"), PLAIN.values(), ids=PLAIN)
async def test_request_that_is_no_grpc_is_refused_plainly(request_, block):
    assert ask(request_) == Refused(block, is_plain=True)


async def test_call_with_a_timeout_that_cannot_be_read_is_refused():
    assert b"grpc-timeout" in ask(build(grpc_timeout=b"soon")).block


async def test_encoding_that_is_not_accepted_is_refused_with_those_that_are():
    assert b"identity,gzip,deflate" in ask(build(grpc_encoding=b"br")).block
