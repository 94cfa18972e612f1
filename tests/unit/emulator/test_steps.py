"""Tests of bridge/emulator/steps.py."""

import json

import pytest

from bridge.emulator.steps import Head, RefusalError, Write, encode_json, send, send_json


def test_json_is_written_without_spaces_and_escapes():
    assert encode_json({"a": [1, "é\n"]}) == '{"a":[1,"é\\n"]}'.encode()


def test_body_is_sent_with_its_length():
    assert list(send(204, b"abc", ("a", "b"))) == [Head(204, (("a", "b"),), 3), Write(b"abc")]
    assert list(send_json(200, {})) == [Head(200, (("content-type", "application/json"),), 2), Write(b"{}")]


@pytest.mark.parametrize(
    ("status", "type_"),
    [
        *((400, "invalid_request_error"), (401, "authentication_error"), (404, "not_found_error"), (408, "timeout")),
        *((418, "invalid_request_error"), (429, "rate_limit_error"), (500, "server_error"), (503, "overloaded_error")),
    ],
)
def test_refusal_is_sent_as_an_error_envelope(status, type_):
    head, write = RefusalError(status, "no", code="c", param="p").send()
    assert head.status == status
    error = json.loads(write.data)["error"]
    assert list(error.items()) == [("message", "no"), ("type", type_), ("code", "c"), ("param", "p")]
