"""From an upstream's answer to a BridgeError, and from its headers to the wait that it asks for.

Which reason an answer gets is a table lookup: by its HTTP status, or, for an error inside a 200 or a stream, by the
number or the known word in its envelope. The code of a reason is in `reasons.py`. The upstream's words are kept whole
here; `status.py` redacts them and cuts them to size.
"""

import math
import re
from collections.abc import Iterable, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Final, TypeAlias

from bridge.core.errors import NOTHING_ASKED, Asked, BridgeError, Code, Violation
from bridge.core.json_text import JsonError, Source, parse
from bridge.core.reasons import REASONS
from bridge.core.redact import SCANNED_CHARS_MAX, redact, truncate
from ollmbridge.v1 import error_details_pb2 as pb
from ollmbridge.v1.error_details_pb2 import UpstreamError

__all__ = ["QUOTA_WORD", "error_from_response", "error_from_value", "parse_retry_after"]

EXCERPT_BYTES_MAX: Final = 2048
"""Of a body that is no envelope; more would never fit into a status."""
RETRY_MS_MAX: Final = 365 * 24 * 3600 * 1000
"""Longest wait that is believed."""
QUOTA_WORD: Final = "insufficient_quota"
"""OpenAI's word for a quota that is used up, as an error's type or code."""

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

_WORDS: Final[Mapping[int, tuple[str, ...]]] = {
    400: ("invalid_request_error", "context_length_exceeded", "content_policy_violation"),
    401: ("authentication_error", "invalid_api_key"),
    402: ("billing_error",),
    403: ("permission_error",),
    404: ("not_found_error", "model_not_found"),
    413: ("request_too_large",),
    429: ("rate_limit_error", "rate_limit_exceeded", QUOTA_WORD),
    500: ("api_error", "internal_error", "internal_server_error", "server_error"),
    503: ("engine_overloaded", "overloaded_error", "service_unavailable", "unavailable_error"),
    504: ("timeout", "timeout_error"),
}
_STATUS_BY_WORD: Final = {word: status for status, words in _WORDS.items() for word in words}


def error_from_response(
    http_status: int,
    body: bytes,
    *,
    content_type: str = "",
    asked: Asked = NOTHING_ASKED,
    retry_after_ms: int | None = None,
) -> BridgeError:
    """Return the error of a response that is not 2xx, or that is not the completion that was asked for."""
    value, source = _parse_body(body)
    is_2xx = 200 <= http_status < 300
    if is_2xx and type(value) is dict and value.get("error"):
        return error_from_value(value, source, named=False, asked=asked, retry_after_ms=retry_after_ms)
    upstream = None if is_2xx else _read_envelope(value, source, named=False)
    reason = _find_reason(http_status, has_envelope=upstream is not None)
    if upstream is None:
        upstream = _read_excerpt(body)
        message = _describe_answer(http_status, body, content_type)
    else:
        message = upstream.message or f"the upstream answered {_describe_status(http_status)}"
    upstream.http_status = http_status
    return _build_error(reason, message, upstream, asked, retry_after_ms)


def error_from_value(
    value: Any,
    source: Source,
    *,
    named: bool,
    asked: Asked = NOTHING_ASKED,
    retry_after_ms: int | None = None,
) -> BridgeError:
    """Return the error that a JSON value in a 2xx response or stream is. `named`: in an event named `error`."""
    upstream = _read_envelope(value, source, named=named)
    if upstream is None:
        upstream = _read_excerpt(source.cut(()).encode())
    upstream.http_status = 200
    status = _find_status(upstream)
    reason = _INTERNAL if status is None else _find_reason(status, has_envelope=True)
    message = upstream.message or "the upstream sent an error without a message"
    return _build_error(reason, message, upstream, asked, retry_after_ms, is_inside_2xx=True)


def _find_reason(http_status: int, *, has_envelope: bool) -> _Reason:
    reasons = _REASON_BY_STATUS if has_envelope else _REASON_WITHOUT_ENVELOPE
    if http_status in reasons:
        return reasons[http_status]
    if 400 <= http_status < 500:
        return _REFUSED
    return _INTERNAL if 500 <= http_status < 600 else _NO_API


def _find_status(upstream: UpstreamError) -> int | None:
    """Return the HTTP status that an envelope names, by a number or by a known word."""
    beside = (upstream.extra_json.get(key, "").strip('"') for key in ("status", "code"))
    words = [upstream.code, upstream.type, *beside]
    for word in words:
        if word.isascii() and word.isdigit() and len(word) == 3 and 400 <= int(word) < 600:
            return int(word)
    return next((_STATUS_BY_WORD[word] for word in words if word in _STATUS_BY_WORD), None)


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


def _read_excerpt(body: bytes) -> UpstreamError:
    start = redact(body[:SCANNED_CHARS_MAX].decode("utf-8", "replace"))
    excerpt = truncate(start, EXCERPT_BYTES_MAX)
    return UpstreamError(body_excerpt=excerpt, truncated=excerpt != start or len(body) > SCANNED_CHARS_MAX)


def _parse_body(body: bytes) -> tuple[Any, Source]:
    try:
        value, text = parse(body.removeprefix(b"\xef\xbb\xbf"))
    except JsonError:
        return None, Source(b"")
    return value, Source(text)


# {"error":{…}}, {"error":"text"}, {"detail":…}, {"message":…}; in an event named `error`, any value.
def _read_envelope(value: Any, source: Source, *, named: bool) -> UpstreamError | None:
    if type(value) is not dict:
        return UpstreamError(message=value) if named and type(value) is str else None
    error = value.get("error")
    if type(error) is dict:
        upstream = _read_fields(error, source, ("error",))
        for key, item in value.items():
            if key != "error" and item is not None:
                name = f"$.{key}" if key in error else key  # beside the error, and of the same name as a key in it
                _add_extra(upstream, name, source, (key,))
        return upstream
    words_key = next((key for key in ("message", "error", "detail") if value.get(key)), None)
    if words_key is None and not named:
        return None
    upstream = _read_fields({key: item for key, item in value.items() if key != words_key}, source, ())
    if words_key is not None:
        words = value[words_key] if type(value[words_key]) is str else _cut_or_none(source, (words_key,))
        upstream.truncated = upstream.truncated or words is None
        upstream.message = words or ""
    return upstream


def _read_fields(error: Mapping[str, Any], source: Source, path: tuple[str, ...]) -> UpstreamError:
    upstream = UpstreamError()
    for key, item in error.items():
        if item is None:
            continue
        if key in {"message", "type", "code", "param"} and type(item) is str:
            setattr(upstream, key, item)
        elif key == "code" and type(item) is int:
            upstream.code = str(item)
        else:
            _add_extra(upstream, key, source, (*path, key))
    return upstream


def _add_extra(upstream: UpstreamError, name: str, source: Source, path: tuple[str, ...]) -> None:
    text = _cut_or_none(source, path)
    if text is None:
        upstream.truncated = True
    else:
        upstream.extra_json[name] = text


# None if the value nests too deeply to be sliced, which must not cost the caller the rest of the error.
def _cut_or_none(source: Source, path: tuple[str, ...]) -> str | None:
    try:
        return source.cut(path)
    except JsonError:
        return None


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
