"""THE table from a failure of the HTTP exchange to a BridgeError, and the errors that the upstream side finds itself.

UNAVAILABLE is for failures before a byte of the request was sent, since callers and meshes repeat it blindly; a lost
connection is ABORTED, since the completion may have run and been billed. A status that has come is in each error.
"""

import dataclasses
from typing import Final, NamedTuple

from bridge.core.errors import BridgeError, Code, from_response
from bridge.upstream.call import UpstreamCall
from bridge.upstream.exchange import (
    ConnectError,
    ConnectionLostError,
    EngineError,
    InvalidAnswerError,
    ReadTimeoutError,
)
from ollmbridge.v1 import error_details_pb2 as details_pb2

__all__ = ["Wait", "broken_head_error", "invalid_body_error", "to_bridge_error", "too_large_error"]


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


def broken_head_error(error: InvalidAnswerError, call: UpstreamCall, *, own_key: bool) -> BridgeError:
    """Return the error of an answer whose head can't be read: its status still says which, if it came."""
    call.http_status = error.status
    failure = to_bridge_error(error, call)
    if error.status is None or 200 <= error.status < 300:
        return failure
    by_status = from_response(error.status, b"", resource=call.resource, own_key=own_key)
    message = f"the gateway answered HTTP {error.status}, but not in valid HTTP: {error}"
    found = dataclasses.replace(by_status, message=message, upstream=failure.upstream)
    found.__cause__ = error
    return found


def invalid_body_error(message: str, call: UpstreamCall, cause: Exception | None = None) -> BridgeError:
    """Return the error of a body that can't be decoded."""
    return _error(Code.INTERNAL, details_pb2.ERROR_REASON_INVALID_UPSTREAM_RESPONSE, message, call, cause)


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
