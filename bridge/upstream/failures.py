"""THE table from a failure of the HTTP exchange to a BridgeError, and the errors that the upstream side finds itself.

UNAVAILABLE is for failures before a byte of the request was sent, since callers and meshes repeat it blindly; a lost
connection is ABORTED, since the completion may have run and been billed. What the head of an answer says, its status
and the wait that it asks for, is in every error of the call (`with_answer`).
"""

import dataclasses
import time
from typing import Final, NamedTuple

from bridge.core.errors import BridgeError, Code
from bridge.core.http_errors import error_from_response, parse_retry_after
from bridge.core.reasons import REASONS, UPSTREAM_DOMAIN
from bridge.core.redact import redact_and_truncate
from bridge.upstream.call import UpstreamCall
from bridge.upstream.coding import is_readable
from bridge.upstream.exchange import (
    ConnectError,
    ConnectionLostError,
    EngineError,
    InvalidAnswerError,
    ReadTimeoutError,
)
from ollmbridge.v1 import error_details_pb2 as details_pb2

__all__ = [
    "Wait",
    "broken_head_error",
    "describe_refusal",
    "to_bridge_error",
    "too_large_error",
    "undecodable_error",
    "with_answer",
]

_EXCERPT_BYTES_MAX: Final = 2048


class Wait(NamedTuple):
    """What is waited for, how long at most, and the setting that says so."""

    what: str
    limit_s: float
    setting: str


class _Row(NamedTuple):
    code: Code
    reason: "details_pb2.ErrorReason.ValueType"
    what: str


_ROWS: Final[dict[type[EngineError], _Row]] = {
    ConnectError: _Row(Code.UNAVAILABLE, details_pb2.ERROR_REASON_UPSTREAM_UNREACHABLE, "can't connect to the gateway"),
    ConnectionLostError: _Row(
        Code.ABORTED, details_pb2.ERROR_REASON_UPSTREAM_DISCONNECTED, "the connection to the gateway was lost"
    ),
    InvalidAnswerError: _Row(
        Code.INTERNAL, details_pb2.ERROR_REASON_INVALID_UPSTREAM_RESPONSE, "the gateway's answer is not valid HTTP"
    ),
    ReadTimeoutError: _Row(Code.DEADLINE_EXCEEDED, details_pb2.ERROR_REASON_UPSTREAM_TIMEOUT, "timeout"),
}


def to_bridge_error(error: EngineError, call: UpstreamCall | None = None, wait: Wait | None = None) -> BridgeError:
    """Return what a failure of the exchange is to a caller. `wait` is what a timeout ended."""
    row = next(_ROWS[kind] for kind in type(error).__mro__ if kind in _ROWS)
    message = f"{row.what}: {error}"
    if wait is not None and isinstance(error, ReadTimeoutError):
        message = f"no {wait.what} from the gateway for {wait.limit_s:g} s ({wait.setting})"
    return _error(row.code, row.reason, message, call, error)


def broken_head_error(error: InvalidAnswerError, call: UpstreamCall) -> BridgeError:
    """Return the error of an answer whose head can't be read: its status still says which, if it came."""
    call.http_status = error.status
    call.answer_headers = list(error.headers)
    failure = to_bridge_error(error, call)
    if error.status is None or 200 <= error.status < 300:
        return failure
    by_status = error_from_response(error.status, b"", asked=call.asked)
    message = f"the gateway answered HTTP {error.status}, but not in valid HTTP: {error}"
    found = dataclasses.replace(by_status, message=message, upstream=failure.upstream)
    found.__cause__ = error
    return found


def undecodable_error(what: str, start: bytes, call: UpstreamCall) -> BridgeError:
    """Return the error of a body whose coding fails: `what` names it. A start that is plain text is the excerpt."""
    message = f"the gateway's body can't be decoded: {what}"
    failure = _error(Code.INTERNAL, details_pb2.ERROR_REASON_INVALID_UPSTREAM_RESPONSE, message, call, None)
    if is_readable(start):
        upstream = failure.upstream = failure.upstream or details_pb2.UpstreamError()
        upstream.body_excerpt = redact_and_truncate(start.decode("utf-8", "replace"), _EXCERPT_BYTES_MAX)
        upstream.truncated = len(start) > _EXCERPT_BYTES_MAX
    return failure


def describe_refusal(error: BridgeError, failure: BridgeError, http_status: int) -> BridgeError:
    """Return the error of a refusal whose body did not come whole or readable, which is no reason for another code.

    `error` is what its status and its bytes say, `failure` what is wrong with the body. An envelope that could be read
    speaks for itself.
    """
    if error.upstream is not None and not error.upstream.HasField("body_excerpt"):
        return error
    upstream = details_pb2.UpstreamError(http_status=http_status)
    if failure.upstream is not None and failure.upstream.HasField("body_excerpt"):
        upstream.CopyFrom(failure.upstream)
    elif error.upstream is not None and error.upstream.body_excerpt:
        upstream.CopyFrom(error.upstream)
    message = f"the gateway answered HTTP {http_status}: {failure.message}"
    return dataclasses.replace(error, message=message, upstream=upstream)


def with_answer(failure: BridgeError, call: UpstreamCall) -> BridgeError:
    """Return a call's failure with what the head of the answer said, if one came: its status and the wait it asks for.

    Only a failure that is the upstream's can ask for a wait. The header counts before what the body says.
    """
    if call.http_status is None:
        return failure
    retry_after_ms = failure.retry_after_ms
    if REASONS[failure.reason].domain == UPSTREAM_DOMAIN:
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in call.answer_headers]
        found = parse_retry_after(headers, now_s=time.time())
        retry_after_ms = retry_after_ms if found is None else found
    if failure.upstream is not None and failure.upstream.http_status and retry_after_ms == failure.retry_after_ms:
        return failure
    upstream = details_pb2.UpstreamError(http_status=call.http_status)
    if failure.upstream is not None:
        upstream.MergeFrom(failure.upstream)
    copy = dataclasses.replace(failure, upstream=upstream, retry_after_ms=retry_after_ms)
    copy.__cause__ = failure.__cause__
    return copy


def too_large_error(limit: int, call: UpstreamCall) -> BridgeError:
    """Return the error of a unary body above its limit."""
    message = f"the gateway's answer has more than {limit} bytes (upstream.response_bytes_max)"
    return _error(Code.INTERNAL, details_pb2.ERROR_REASON_UPSTREAM_RESPONSE_TOO_LARGE, message, call, None)


def _error(
    code: Code,
    reason: "details_pb2.ErrorReason.ValueType",
    message: str,
    call: UpstreamCall | None,
    cause: Exception | None,
) -> BridgeError:
    failure = BridgeError(code, reason, message)
    if call is not None and call.http_status is not None:
        failure.upstream = details_pb2.UpstreamError(http_status=call.http_status)
    failure.__cause__ = cause
    return failure
