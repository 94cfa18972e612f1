"""Tests of bridge/cli/explain.py: a failed call in plain text."""

import grpc
import pytest
from google.protobuf.any_pb2 import Any
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from google.rpc.status_pb2 import Status

from bridge.cli.explain import describe_error


def make_error(code: grpc.StatusCode, message: str, *details, trailer: bytes | None = None) -> grpc.aio.AioRpcError:
    status = Status(code=code.value[0], message=message)
    for detail in details:
        status.details.add().Pack(detail)
    packed = status.SerializeToString() if trailer is None else trailer
    trailers = grpc.aio.Metadata(("grpc-status-details-bin", packed)) if details or trailer else grpc.aio.Metadata()
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, details=message)


def test_details_and_advice_follow_the_message():
    error = make_error(
        grpc.StatusCode.INVALID_ARGUMENT,
        "n: expected 1",
        ErrorInfo(reason="INVALID_REQUEST", domain="ollmbridge"),
        BadRequest(field_violations=[BadRequest.FieldViolation(field="n")]),
    )
    assert describe_error(error) == [
        "INVALID_ARGUMENT: n: expected 1",
        '  ErrorInfo: reason: "INVALID_REQUEST" domain: "ollmbridge"',
        '  BadRequest: field_violations { field: "n" }',
        "  what to do: fix the listed fields",
    ]


def test_detail_of_an_unknown_type_is_omitted():
    error = make_error(grpc.StatusCode.INTERNAL, "x", ErrorInfo(reason="OTHER"), Any(type_url="a/b"))
    assert describe_error(error) == ["INTERNAL: x", '  ErrorInfo: reason: "OTHER"']


BARE = {
    "unavailable": (
        grpc.StatusCode.UNAVAILABLE,
        ["  what to do: check that a bridge listens at this address (its call port), and whether by TLS (--tls)"],
    ),
    "deadline": (grpc.StatusCode.DEADLINE_EXCEEDED, ["  what to do: give the call more time"]),
    "another port": (
        grpc.StatusCode.UNIMPLEMENTED,
        ["  what to do: check that the address is the call port of a bridge"],
    ),
    "cancelled": (grpc.StatusCode.CANCELLED, []),
}


@pytest.mark.parametrize(("code", "advice"), BARE.values(), ids=BARE)
def test_status_without_details_has_advice_by_its_code(code, advice):
    assert describe_error(make_error(code, "x")) == [f"{code.name}: x", *advice]


def test_details_that_contradict_the_status_are_omitted():
    trailer = Status(code=3, message="another").SerializeToString()
    assert describe_error(make_error(grpc.StatusCode.INTERNAL, "x", trailer=trailer)) == ["INTERNAL: x"]


def test_control_characters_do_not_reach_the_terminal():
    lines = describe_error(make_error(grpc.StatusCode.INTERNAL, "\x1b]0;title\x07\x9b2J ü"))
    assert lines == ["INTERNAL: \\x1b]0;title\\x07\\x9b2J ü"]
