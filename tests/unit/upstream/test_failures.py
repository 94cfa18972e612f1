"""Tests of bridge/upstream/failures.py: the table from an engine's failure to a status."""

import pytest

from bridge.core.errors import Asked, BridgeError, Code
from bridge.upstream import exchange
from bridge.upstream.call import UpstreamCall
from bridge.upstream.exchange import ConnectError, EngineError, InvalidAnswerError, ReadTimeoutError
from bridge.upstream.failures import Wait, broken_head_error, to_bridge_error, with_answer
from ollmbridge.v1 import error_details_pb2 as details_pb2

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
    error = broken_head_error(InvalidAnswerError("its head is malformed", status=status), call)
    assert error.code.name == code
    assert "its head is malformed" in error.message
    assert call.http_status == status
    assert (error.upstream.http_status if error.upstream else None) == status


def test_refusal_of_the_bridges_own_key_is_the_bridges_in_a_broken_head_too():
    error = broken_head_error(InvalidAnswerError("x", status=401), UpstreamCall(asked=Asked(None, own_key=True)))
    assert error.reason_name == "CREDENTIALS_REJECTED"


def fail_with(reason: str, **fields) -> BridgeError:
    return BridgeError(Code.ABORTED, details_pb2.ErrorReason.Value(f"ERROR_REASON_{reason}"), "it failed", **fields)


def head(*headers: tuple[bytes, bytes], status: int = 200) -> UpstreamCall:
    return UpstreamCall(http_status=status, answer_headers=list(headers))


def test_failure_before_a_head_stays_as_it_is():
    error = fail_with("UPSTREAM_UNREACHABLE")
    assert with_answer(error, UpstreamCall()) is error


@pytest.mark.parametrize("reason", ["UPSTREAM_DISCONNECTED", "UPSTREAM_STREAM_ERROR", "DRAINING", "BRIDGE_FAULT"])
def test_failure_after_a_head_has_its_status(reason):
    cause = ValueError("cause")
    error = fail_with(reason)
    error.__cause__ = cause
    found = with_answer(error, head())
    assert found.upstream.http_status == 200
    assert (found.code, found.reason, found.message, found.__cause__) == (error.code, error.reason, "it failed", cause)


def test_what_a_failure_knows_of_its_upstream_stays():
    upstream = details_pb2.UpstreamError(message="no", chunks_delivered=2)
    found = with_answer(fail_with("UPSTREAM_STREAM_ERROR", upstream=upstream), head())
    assert found.upstream == details_pb2.UpstreamError(message="no", chunks_delivered=2, http_status=200)
    assert not upstream.http_status


@pytest.mark.parametrize(
    ("header", "known_ms", "expected_ms"),
    [
        ((b"retry-after", b"7"), None, 7000),
        ((b"retry-after-ms", b"1500"), None, 1500),
        ((b"retry-after", b"7"), 100, 7000),
        ((b"retry-after", b"soon"), 100, 100),
        ((b"date", b"7"), None, None),
    ],
)
def test_wait_that_the_head_asks_for_is_in_the_upstreams_errors(header, known_ms, expected_ms):
    error = fail_with("UPSTREAM_STREAM_ERROR", retry_after_ms=known_ms)
    assert with_answer(error, head(header)).retry_after_ms == expected_ms


def test_wait_that_the_head_asks_for_is_not_in_the_bridges_own_errors():
    assert with_answer(fail_with("DRAINING"), head((b"retry-after", b"7"))).retry_after_ms is None
