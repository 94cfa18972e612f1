"""Tests of bridge/server/native/answers.py: what callers read of the coded blocks."""

import hpack

from bridge.core.errors import BridgeError, Code
from bridge.core.status import to_grpc_status
from bridge.server.native import answers
from ollmbridge.v1 import error_details_pb2 as details_pb2


def decode(block: bytes) -> list[tuple[str, str]]:
    return hpack.Decoder().decode(block)


def test_prepared_blocks_say_what_they_should():
    assert decode(answers.HEAD) == [(":status", "200"), ("content-type", "application/grpc")]
    assert decode(answers.OK) == [("grpc-status", "0")]
    assert decode(answers.PlainAnswer.NOT_POST)[0] == (":status", "405")
    assert decode(answers.PlainAnswer.NOT_GRPC)[0] == (":status", "415")


def test_trailers_have_status_message_and_metadata():
    assert decode(answers.encode_trailers(8, "no room", [("x-a", "1")])) == [
        ("grpc-status", "8"),
        ("grpc-message", "no room"),
        ("x-a", "1"),
    ]
    assert answers.encode_trailers(0, "", ()) is answers.OK
    assert decode(answers.encode_trailers(0, "", [("x-a", "1")])) == [("grpc-status", "0"), ("x-a", "1")]


def test_unsupported_encoding_says_which_are_supported():
    found = dict(decode(answers.encode_unsupported_encoding("not that one", ["gzip"])))
    assert (found["grpc-status"], found["grpc-accept-encoding"]) == ("12", "identity,gzip")


def test_status_of_many_refusals_is_coded_once():
    refusals = answers.Refusals()
    error = BridgeError(Code.RESOURCE_EXHAUSTED, details_pb2.ERROR_REASON_OVERLOADED, "full")
    first, second = to_grpc_status(error), to_grpc_status(error)
    block = refusals.encode(first)
    assert refusals.encode(first) is block
    assert refusals.encode(second) is not block
    assert dict(decode(block))["grpc-message"] == "full"
