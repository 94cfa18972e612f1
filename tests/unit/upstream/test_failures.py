"""Tests of bridge/upstream/failures.py: the table from an engine's failure to a status."""

import pytest

from bridge.upstream import exchange
from bridge.upstream.call import UpstreamCall
from bridge.upstream.exchange import ConnectError, EngineError, InvalidAnswerError, ReadTimeoutError
from bridge.upstream.failures import Wait, broken_head_error, to_bridge_error

KINDS = [kind for kind in vars(exchange).values() if isinstance(kind, type) and issubclass(kind, EngineError)]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not EngineError])
def test_each_failure_has_a_row_and_only_one_before_sending_is_unavailable(kind):
    error = to_bridge_error(kind("it was so"))
    assert (error.code.name == "UNAVAILABLE") is not kind.sent
    assert "it was so" in error.message


def test_kind_of_its_own_has_the_row_of_its_parent():
    class ProxyError(ConnectError):
        pass

    assert to_bridge_error(ProxyError("no")).reason_name == "UPSTREAM_UNREACHABLE"


def test_timeout_says_what_it_waited_for_and_which_setting_ended_it():
    wait = Wait("data", 90, "upstream.idle_timeout_s")
    error = to_bridge_error(ReadTimeoutError("nothing came in time"), wait=wait)
    assert error.message == "no data from the gateway for 90 s (upstream.idle_timeout_s)"


@pytest.mark.parametrize(
    ("status", "code"), [(None, "INTERNAL"), (200, "INTERNAL"), (401, "UNAUTHENTICATED"), (503, "UNAVAILABLE")]
)
def test_status_of_a_broken_head_picks_the_row(status, code):
    call = UpstreamCall(headers=[])
    error = broken_head_error(InvalidAnswerError("its head is malformed", status=status), call, own_key=False)
    assert error.code.name == code
    assert "its head is malformed" in error.message
    assert call.http_status == status
    assert (error.upstream.http_status if error.upstream else None) == status


def test_refusal_of_the_bridges_own_key_is_the_bridges_in_a_broken_head_too():
    error = broken_head_error(InvalidAnswerError("x", status=401), UpstreamCall(headers=[]), own_key=True)
    assert error.reason_name == "CREDENTIALS_REJECTED"
