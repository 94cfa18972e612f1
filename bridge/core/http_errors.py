"""From an upstream's answer to a BridgeError, and from its headers to the wait that it asks for.

Which reason an answer gets is a table lookup: by its HTTP status, or, for an error inside a 200 or a stream, by the
status that its words name (`error_status.py`). What an error says is read in `envelope.py`; the code of a reason is in
`reasons.py`. The upstream's words are kept whole here; `status.py` redacts them and cuts them to size.
"""

import math
import re
from collections.abc import Iterable, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Final, TypeAlias

from bridge.core.completion import has_content
from bridge.core.envelope import Envelope, find_error, read_envelope
from bridge.core.error_body import read_document, read_excerpt
from bridge.core.error_status import RETRY_MS_MAX, find_retry_ms, find_status, is_missing_route
from bridge.core.errors import NOTHING_ASKED, Asked, BridgeError, Code, Violation
from bridge.core.reasons import REASONS
from bridge.core.source import Source
from ollmbridge.v1 import error_details_pb2 as pb
from ollmbridge.v1.error_details_pb2 import UpstreamError

__all__ = ["error_from_response", "error_from_value", "error_inside_answer", "parse_retry_after"]

_Reason: TypeAlias = "pb.ErrorReason.ValueType"

_INTERNAL: Final = pb.ERROR_REASON_UPSTREAM_INTERNAL
_REFUSED: Final = pb.ERROR_REASON_UPSTREAM_REFUSED
_UNAVAILABLE: Final = pb.ERROR_REASON_UPSTREAM_UNAVAILABLE
_NO_API: Final = pb.ERROR_REASON_INVALID_UPSTREAM_RESPONSE
_KEY_REASONS: Final = {pb.ERROR_REASON_UPSTREAM_UNAUTHENTICATED, pb.ERROR_REASON_UPSTREAM_PERMISSION_DENIED}

_STATUSES: Final[Mapping[_Reason, tuple[int, ...]]] = {
    pb.ERROR_REASON_UPSTREAM_INVALID_REQUEST: (400, 413, 415, 422),
    pb.ERROR_REASON_UPSTREAM_UNAUTHENTICATED: (401,),
    pb.ERROR_REASON_UPSTREAM_PAYMENT_REQUIRED: (402,),
    pb.ERROR_REASON_UPSTREAM_PERMISSION_DENIED: (403, 451),
    pb.ERROR_REASON_UPSTREAM_NOT_FOUND: (404, 410),
    _NO_API: (405,),
    pb.ERROR_REASON_UPSTREAM_PROVIDER_TIMEOUT: (408, 504, 524),
    pb.ERROR_REASON_UPSTREAM_CONFLICT: (409, 499),  # 499 is never CANCELLED: meshes retry that by themselves
    pb.ERROR_REASON_UPSTREAM_RATE_LIMITED: (425, 429),
    pb.ERROR_REASON_UPSTREAM_UNIMPLEMENTED: (501,),
    pb.ERROR_REASON_UPSTREAM_PROVIDER_FAILED: (502,),
    _UNAVAILABLE: (503, 520, 521, 522, 523, 525, 526, 527, 529, 530),
}
# Without an envelope, something other than the API answered: the base URL is wrong, or a proxy answered.
_STATUSES_WITHOUT_ENVELOPE: Final[Mapping[_Reason, tuple[int, ...]]] = {
    _NO_API: (404, 406, 411, 431),
    _REFUSED: (410,),
    _UNAVAILABLE: (502,),
}
_REASON_BY_STATUS: Final = {status: reason for reason, statuses in _STATUSES.items() for status in statuses}
_REASON_WITHOUT_ENVELOPE: Final = _REASON_BY_STATUS | {
    status: reason for reason, statuses in _STATUSES_WITHOUT_ENVELOPE.items() for status in statuses
}


def error_from_response(
    http_status: int,
    body: bytes,
    *,
    content_type: str = "",
    asked: Asked = NOTHING_ASKED,
    retry_after_ms: int | None = None,
) -> BridgeError:
    """Return the error of a response that is not 2xx, or that is not the completion that was asked for."""
    value, source = read_document(body, content_type)
    if 200 <= http_status < 300:
        if (envelope := find_error(value, source)) is not None:
            return error_inside_answer(envelope, value, source, asked=asked, retry_after_ms=retry_after_ms)
    elif (envelope := read_envelope(value, source, named=False)) is not None:
        return _error_from_envelope(http_status, envelope, asked, retry_after_ms)
    upstream = UpstreamError(http_status=http_status, **read_excerpt(body, content_type))
    reason = _find_reason(http_status, has_envelope=False)
    return _build_error(reason, _describe_answer(http_status, body, content_type), upstream, asked, retry_after_ms)


def _error_from_envelope(http_status: int, envelope: Envelope, asked: Asked, retry_after_ms: int | None) -> BridgeError:
    """Return the error of a failed answer that says what it is; its status line decides, whatever its words are."""
    upstream, layers = envelope
    upstream.http_status = http_status
    if retry_after_ms is None:
        retry_after_ms = find_retry_ms(layers)
    message = upstream.message or f"the upstream answered {_describe_status(http_status)}"
    is_bare = not any(type(layer.get("error")) is dict for layer in layers)
    if http_status == 404 and is_missing_route(upstream.message, is_bare=is_bare):
        message = f"the upstream does not serve the path of the API (upstream.base_url): {message}"
        return _build_error(_NO_API, message, upstream, asked, retry_after_ms)
    return _build_error(_find_reason(http_status, has_envelope=True), message, upstream, asked, retry_after_ms)


def error_from_value(
    value: Any,
    source: Source,
    *,
    named: bool,
    asked: Asked = NOTHING_ASKED,
    retry_after_ms: int | None = None,
) -> BridgeError:
    """Return the error that a JSON value in a 2xx response or stream is. `named`: in an event named `error`."""
    envelope = read_envelope(value, source, named=named)
    if envelope is None:
        envelope = Envelope(UpstreamError(**read_excerpt(source.cut(()).encode())), ())
    return error_inside_answer(envelope, value, source, asked=asked, retry_after_ms=retry_after_ms)


def error_inside_answer(
    envelope: Envelope,
    value: Any,
    source: Source,
    *,
    asked: Asked = NOTHING_ASKED,
    retry_after_ms: int | None = None,
) -> BridgeError:
    """Return the error that `find_error` found in the value of a 2xx answer or of an event."""
    upstream, layers = envelope
    upstream.http_status = 200
    status = find_status(layers)
    reason = _INTERNAL if status is None else _find_reason(status, has_envelope=True)
    message = upstream.message or "the upstream sent an error without a message"
    wait_ms = find_retry_ms(layers) if retry_after_ms is None else retry_after_ms
    choices = value.get("choices") if type(value) is dict else None
    if type(choices) is list and any(type(choice) is dict and has_content(choice) for choice in choices):
        upstream.MergeFrom(UpstreamError(**read_excerpt(source.cut(()).encode())))
        error = _build_error(reason, message, upstream, asked, wait_ms, is_inside_2xx=True)
        return error.with_progress(http_status=200, chunks=0, usage=None, has_generated=True)
    return _build_error(reason, message, upstream, asked, wait_ms, is_inside_2xx=True)


def _find_reason(http_status: int, *, has_envelope: bool) -> _Reason:
    reasons = _REASON_BY_STATUS if has_envelope else _REASON_WITHOUT_ENVELOPE
    if http_status in reasons:
        return reasons[http_status]
    if 400 <= http_status < 500:
        return _REFUSED
    return _INTERNAL if 500 <= http_status < 600 else _NO_API


def _build_error(
    reason: _Reason,
    message: str,
    upstream: UpstreamError,
    asked: Asked,
    retry_after_ms: int | None,
    *,
    is_inside_2xx: bool = False,
) -> BridgeError:
    if asked.own_key and reason in _KEY_REASONS:  # no fault of the caller's
        reason = pb.ERROR_REASON_CREDENTIALS_REJECTED
        message = f"the upstream refused the bridge's own key (HTTP {upstream.http_status}): {message}"
    code = REASONS[reason].code or Code.INTERNAL
    if is_inside_2xx and reason != pb.ERROR_REASON_CREDENTIALS_REJECTED:
        reason = pb.ERROR_REASON_UPSTREAM_STREAM_ERROR
    names_param = code is Code.INVALID_ARGUMENT and upstream.HasField("param")
    return BridgeError(
        code,
        reason,
        message,
        upstream=upstream,
        retry_after_ms=retry_after_ms,
        violations=[Violation(upstream.param, message)] if names_param else (),
        resource=asked.resource if code is Code.NOT_FOUND else None,
    )


def _describe_answer(http_status: int, body: bytes, content_type: str) -> str:
    kind = content_type.partition(";")[0].strip() or "no content-type"
    size = f"{len(body)} bytes of {kind}" if body else "an empty body"
    return f"the upstream sent neither a completion nor an error envelope: {_describe_status(http_status)} with {size}"


def _describe_status(http_status: int) -> str:
    known = http_status in HTTPStatus.__members__.values()
    return f"HTTP {http_status} {HTTPStatus(http_status).phrase}" if known else f"HTTP {http_status}"


def parse_retry_after(headers: Iterable[tuple[str, str]], *, now_s: float) -> int | None:
    """Return the wait that a response asks for, in milliseconds, or None if it asks for none in a known form.

    `retry-after-ms` is OpenAI's; `Retry-After` is seconds, a fraction of them too, or an HTTP date (RFC 9110, 10.2.3).
    `now_s` is Unix time; a date in the past is no wait.
    """
    found = {name.lower(): value.strip() for name, value in headers}
    for name, unit_ms in (("retry-after-ms", 1), ("retry-after", 1000)):
        if (text := found.get(name)) is None:
            continue
        if re.fullmatch(r"\d+(\.\d*)?", text, re.ASCII):
            return math.ceil(min(float(text) * unit_ms, RETRY_MS_MAX))
        if name == "retry-after" and (date_s := _parse_http_date(text)) is not None:
            return min(max(math.ceil((date_s - now_s) * 1000), 0), RETRY_MS_MAX)
    return None


def _parse_http_date(text: str) -> float | None:
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
