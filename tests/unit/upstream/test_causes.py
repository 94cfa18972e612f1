"""Tests of bridge/upstream/causes.py: what may be said of an error of the system's."""

import socket

import pytest

from bridge.upstream.causes import describe_cause

CAUSES = {
    "of the system": (ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 9)"), "connection refused"),
    "of DNS": (socket.gaierror(-2, "Name or service not known"), "name or service not known"),
    "of several addresses": (OSError("Multiple exceptions: ('127.0.0.1', 9)"), "network error"),
    "of uvloop": (ConnectionResetError(), "connection reset"),
}


@pytest.mark.parametrize(("error", "words"), CAUSES.values(), ids=CAUSES)
def test_cause_is_said_without_addresses(error, words):
    assert describe_cause(error) == words
