import pytest

from bridge.core.errors import BridgeError, Code, Violation, invalid_request
from ollmbridge.v1 import error_details_pb2 as details_pb2
from ollmbridge.v1.chat_pb2 import Usage
from ollmbridge.v1.error_details_pb2 import UpstreamError


def raise_and_catch(error: BridgeError, cause: BaseException | None = None) -> BridgeError:
    with pytest.raises(BridgeError) as caught:
        raise error from cause
    return caught.value


def test_error_reads_as_its_code_reason_and_message():
    error = BridgeError(Code.ABORTED, details_pb2.ERROR_REASON_UPSTREAM_CONFLICT, "m")
    assert str(error) == "ABORTED UPSTREAM_CONFLICT: m"


def test_invalid_request_names_the_first_violation_and_counts_the_others():
    violations = [Violation("n", "expected 1, found 2"), Violation("model", "expected a name")]
    error = invalid_request(violations)
    assert (error.code, error.reason_name) == (Code.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert error.message == "n: expected 1, found 2 (and 1 more)"
    assert error.violations == tuple(violations)
    assert invalid_request(violations[:1]).message == "n: expected 1, found 2"


def test_progress_is_told_by_a_copy():
    error = BridgeError(Code.INTERNAL, details_pb2.ERROR_REASON_UPSTREAM_TIMEOUT, "m", retry_after_ms=5)
    copy = error.with_progress(http_status=200, chunks=3, usage=Usage(total_tokens=7))
    assert (copy.code, copy.reason, copy.message, copy.retry_after_ms) == (error.code, error.reason, "m", 5)
    assert copy.upstream == UpstreamError(http_status=200, chunks_delivered=3, partial_usage={"total_tokens": 7})
    assert error.upstream is None


def test_upstream_error_is_copied_too_and_keeps_its_own_status():
    upstream = UpstreamError(http_status=201, message="m", extra_json={"x": "1"})
    error = BridgeError(Code.INTERNAL, details_pb2.ERROR_REASON_UPSTREAM_STREAM_ERROR, "m", upstream=upstream)
    copy = error.with_progress(http_status=200, chunks=1, usage=None)
    assert copy.upstream == UpstreamError(http_status=201, message="m", extra_json={"x": "1"}, chunks_delivered=1)
    assert error.upstream == UpstreamError(http_status=201, message="m", extra_json={"x": "1"})


@pytest.mark.parametrize("cause", [None, ValueError("why")], ids=["no cause", "a cause"])
def test_copy_keeps_cause_and_traceback(cause):
    error = raise_and_catch(BridgeError(Code.INTERNAL, details_pb2.ERROR_REASON_BRIDGE_FAULT, "m"), cause)
    copy = error.with_progress(http_status=200, chunks=0, usage=None)
    assert copy.__cause__ is cause
    assert copy.__suppress_context__
    assert copy.__traceback__ is error.__traceback__ is not None


@pytest.mark.parametrize(
    ("code", "chunks", "expected"),
    [
        (Code.UNAVAILABLE, 0, Code.UNAVAILABLE),
        (Code.UNAVAILABLE, 1, Code.ABORTED),
        (Code.RESOURCE_EXHAUSTED, 1, Code.RESOURCE_EXHAUSTED),
    ],
)
def test_error_is_never_unavailable_after_a_chunk(code, chunks, expected):
    error = BridgeError(code, details_pb2.ERROR_REASON_UPSTREAM_UNAVAILABLE, "m")
    assert error.with_progress(http_status=200, chunks=chunks, usage=None).code is expected
    assert error.code is code
