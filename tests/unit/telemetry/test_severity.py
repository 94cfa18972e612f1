"""Tests of bridge/telemetry/severity.py: the level of a call's line follows from who has to act."""

import logging

import pytest

from bridge.core.reasons import REASONS
from bridge.telemetry.severity import find_severity
from ollmbridge.v1.error_details_pb2 import ErrorReason

INFO, WARNING, ERROR = logging.INFO, logging.WARNING, logging.ERROR
LEVELS = {
    "": INFO,
    "INVALID_REQUEST": INFO,
    "UPSTREAM_NOT_FOUND": INFO,
    "UPSTREAM_RATE_LIMITED": INFO,
    "CALLER_DENIED": INFO,
    "DRAINING": INFO,
    "UPSTREAM_UNREACHABLE": WARNING,
    "UPSTREAM_TIMEOUT": WARNING,
    "UPSTREAM_INTERNAL": WARNING,
    "INCOMPLETE_COMPLETION": WARNING,
    "OVERLOADED": WARNING,
    "A_REASON_OF_LATER": WARNING,
    "CREDENTIALS_REJECTED": ERROR,
    "BRIDGE_FAULT": ERROR,
}


@pytest.mark.parametrize(("reason", "level"), LEVELS.items(), ids=[name or "OK" for name in LEVELS])
def test_level_follows_from_the_reason(reason, level):
    assert find_severity(reason) == level


def test_every_reason_has_a_level():
    for number in REASONS:
        assert find_severity(ErrorReason.Name(number).removeprefix("ERROR_REASON_")) in {INFO, WARNING, ERROR}
