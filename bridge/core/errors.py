"""Every failure of a call: one error class, the tables from HTTP to status, and the status within its size.

A BridgeError is raised anywhere and turned into a status once. Which code and reason an upstream's answer gets is a
table lookup: by its HTTP status, or, for an error inside a 200 or a stream, by the number or the known word in the
envelope. UNAVAILABLE is kept for failures in which nothing was generated, since meshes and clients repeat it blindly;
where a completion may have run and been billed the code is ABORTED, and the caller decides.

The status travels in HTTP/2 trailers, which peers drop above 8 KiB; `rendered` keeps all of them under 6 KiB, counted
as they are sent, by cutting the upstream's own words from their end. Nothing shaped like a key gets out.
"""

import base64
import enum
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as rpc_pb2
from google.rpc import status_pb2

from bridge.core.codec import Fault, JsonError, Source, parse
from ollmbridge.v1 import error_details_pb2 as details_pb2
from ollmbridge.v1.error_details_pb2 import ErrorReason, UpstreamError

__all__ = [
    "BridgeError",
    "Code",
    "Rendered",
    "Resource",
    "from_error_value",
    "from_response",
    "invalid_request",
    "redacted",
    "rendered",
    "retry_after_ms",
]

DOMAIN: Final = "ollmbridge"
UPSTREAM_DOMAIN: Final = "upstream.ollmbridge"

TRAILER_BYTES_MAX: Final = 6 * 1024
"""All trailers of a failed call, as sent. grpc-go and others drop the status above 8 KiB."""
MESSAGE_BYTES_MAX: Final = 1024
"""UTF-8 bytes of the status message."""
FORWARDED_BYTES_MAX: Final = 1024
"""Of the trailers, what the upstream's forwarded headers may take."""
DETAIL_TEXT_BYTES_MAX: Final = 200
"""Of one text in a detail other than UpstreamError: enough for a path, a code or a sentence."""
EXCERPT_BYTES_MAX: Final = 2048
"""Of a body that is no envelope; more would never fit."""
SCANNED_CHARS_MAX: Final = 16 * 1024
"""How much of a text is looked through for keys; what is behind is cut off anyway."""
PUSHBACK_MS_MAX: Final = 60_000
"""Longest wait that grpc-retry-pushback-ms asks for: a client that sleeps longer holds its call open for nothing."""
RETRY_MS_MAX: Final = 365 * 24 * 3600 * 1000
"""Longest wait believed."""
_HEADER_OVERHEAD_BYTES: Final = 32  # a header's, as HTTP/2 counts it (RFC 9113, 6.5.2)


class Code(enum.IntEnum):
    """The gRPC codes that the bridge gives, with their numbers in google.rpc.Code."""

    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class Resource(NamedTuple):
    """What a request selected: the type "model", "function" or "variant", and the name."""

    type: str
    name: str


@dataclass(eq=False)
class BridgeError(Exception):
    """A call's failure: all that its status will say.

    `message` says what was expected and what was found, or repeats the upstream. `reason` is a number of ErrorReason.
    Times are in milliseconds.
    """

    code: Code
    reason: "ErrorReason.ValueType"
    message: str
    upstream: UpstreamError | None = None
    retry_after_ms: int | None = None
    faults: Sequence[Fault] = ()
    resource: Resource | None = None

    def __str__(self) -> str:
        """Give the reason and the message."""
        return f"{self.code.name} {self.reason_name}: {self.message}"

    @property
    def reason_name(self) -> str:
        """The reason as ErrorInfo gives it, without the enum's prefix."""
        return ErrorReason.Name(self.reason).removeprefix("ERROR_REASON_")


def invalid_request(faults: Sequence[Fault]) -> BridgeError:
    """Give the error of a request that breaks the contract's own rules: one violation a fault."""
    first = f"{faults[0].field}: {faults[0].description}"
    others = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return BridgeError(
        Code.INVALID_ARGUMENT, details_pb2.ERROR_REASON_INVALID_REQUEST, first + others, faults=tuple(faults)
    )


# The tables


class _Row(NamedTuple):
    code: Code
    reason: "ErrorReason.ValueType"


_INVALID = _Row(Code.INVALID_ARGUMENT, details_pb2.ERROR_REASON_UPSTREAM_INVALID_REQUEST)
_UNAUTHENTICATED = _Row(Code.UNAUTHENTICATED, details_pb2.ERROR_REASON_UPSTREAM_UNAUTHENTICATED)
_DENIED = _Row(Code.PERMISSION_DENIED, details_pb2.ERROR_REASON_UPSTREAM_PERMISSION_DENIED)
_NOT_FOUND = _Row(Code.NOT_FOUND, details_pb2.ERROR_REASON_UPSTREAM_NOT_FOUND)
_TIMEOUT = _Row(Code.DEADLINE_EXCEEDED, details_pb2.ERROR_REASON_UPSTREAM_PROVIDER_TIMEOUT)
_CONFLICT = _Row(Code.ABORTED, details_pb2.ERROR_REASON_UPSTREAM_CONFLICT)
_LIMITED = _Row(Code.RESOURCE_EXHAUSTED, details_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED)
_REFUSED = _Row(Code.FAILED_PRECONDITION, details_pb2.ERROR_REASON_UPSTREAM_REFUSED)
_INTERNAL = _Row(Code.INTERNAL, details_pb2.ERROR_REASON_UPSTREAM_INTERNAL)
_UNAVAILABLE = _Row(Code.UNAVAILABLE, details_pb2.ERROR_REASON_UPSTREAM_UNAVAILABLE)
_PROVIDER_FAILED = _Row(Code.UNAVAILABLE, details_pb2.ERROR_REASON_UPSTREAM_PROVIDER_FAILED)
_NO_API = _Row(Code.INTERNAL, details_pb2.ERROR_REASON_INVALID_UPSTREAM_RESPONSE)

_KEY_REFUSED: Final = frozenset({_UNAUTHENTICATED, _DENIED})

_BY_STATUS: Final[Mapping[int, _Row]] = {
    400: _INVALID,
    401: _UNAUTHENTICATED,
    402: _Row(Code.FAILED_PRECONDITION, details_pb2.ERROR_REASON_UPSTREAM_PAYMENT_REQUIRED),
    403: _DENIED,
    404: _NOT_FOUND,
    405: _NO_API,
    408: _TIMEOUT,
    409: _CONFLICT,
    410: _NOT_FOUND,
    413: _INVALID,
    415: _INVALID,
    422: _INVALID,
    425: _LIMITED,
    429: _LIMITED,
    451: _DENIED,
    499: _CONFLICT,  # never CANCELLED: meshes repeat that by themselves
    501: _Row(Code.UNIMPLEMENTED, details_pb2.ERROR_REASON_UPSTREAM_UNIMPLEMENTED),
    502: _PROVIDER_FAILED,
    503: _UNAVAILABLE,
    504: _TIMEOUT,
    524: _TIMEOUT,
    **dict.fromkeys((520, 521, 522, 523, 525, 526, 527, 529, 530), _UNAVAILABLE),
}

# Where no envelope came, something other than the API answered: the base URL is wrong, or a proxy spoke.
_BY_STATUS_WITHOUT_ENVELOPE: Final[Mapping[int, _Row]] = {
    **dict.fromkeys((404, 406, 411, 431), _NO_API),
    410: _REFUSED,
    502: _UNAVAILABLE,
}

_BY_WORD: Final[Mapping[str, int]] = {
    "api_error": 500,
    "authentication_error": 401,
    "billing_error": 402,
    "content_policy_violation": 400,
    "context_length_exceeded": 400,
    "engine_overloaded": 503,
    "insufficient_quota": 429,
    "internal_error": 500,
    "internal_server_error": 500,
    "invalid_api_key": 401,
    "invalid_request_error": 400,
    "model_not_found": 404,
    "not_found_error": 404,
    "overloaded_error": 503,
    "permission_error": 403,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "request_too_large": 413,
    "server_error": 500,
    "service_unavailable": 503,
    "timeout": 504,
    "timeout_error": 504,
    "unavailable_error": 503,
}

_QUOTA_WORD: Final = "insufficient_quota"


def _row_of_status(http_status: int, *, enveloped: bool) -> _Row:
    if not enveloped and http_status in _BY_STATUS_WITHOUT_ENVELOPE:
        return _BY_STATUS_WITHOUT_ENVELOPE[http_status]
    if http_status in _BY_STATUS:
        return _BY_STATUS[http_status]
    if 400 <= http_status < 500:
        return _REFUSED
    return _INTERNAL if 500 <= http_status < 600 else _NO_API


def _status_named(upstream: UpstreamError) -> int | None:
    beside = (upstream.extra_json.get(key, "").strip('"') for key in ("status", "code"))
    words = [upstream.code, upstream.type, *beside]
    for word in words:
        if word.isascii() and word.isdigit() and len(word) == 3 and 400 <= int(word) < 600:
            return int(word)
    return next((_BY_WORD[word] for word in words if word in _BY_WORD), None)


# From the upstream's answer


def from_response(
    http_status: int,
    body: bytes,
    *,
    content_type: str = "",
    resource: Resource | None = None,
    own_key: bool = False,
    retry_after_ms: int | None = None,
) -> BridgeError:
    """Give the error that a response is: one that is not 2xx, or that is none of what was asked for.

    `own_key`: the key sent was the bridge's, so that the caller can't mend its refusal.
    """
    value, source = _parsed(body)
    good = 200 <= http_status < 300
    if good and type(value) is dict and value.get("error"):
        return from_error_value(
            value, source, named=False, resource=resource, own_key=own_key, retry_after_ms=retry_after_ms
        )
    upstream = None if good else _envelope(value, source, named=False)
    row = _row_of_status(http_status, enveloped=upstream is not None)
    if upstream is None:
        upstream = _excerpted(body)
        message = _unexpected(http_status, body, content_type)
    else:
        message = upstream.message or f"the upstream answered HTTP {http_status} {_phrase(http_status)}".rstrip()
    upstream.http_status = http_status
    return _error(row, message, upstream, resource, own_key=own_key, retry_after_ms=retry_after_ms)


def from_error_value(
    value: Any,
    source: Source,
    *,
    named: bool,
    resource: Resource | None = None,
    own_key: bool = False,
    retry_after_ms: int | None = None,
) -> BridgeError:
    """Give the error that a JSON value in a good response or stream is; `named`, in an event named `error`."""
    upstream = _envelope(value, source, named=named)
    if upstream is None:
        upstream = _excerpted(source.cut(()).encode())
    upstream.http_status = 200
    status = _status_named(upstream)
    row = _INTERNAL if status is None else _row_of_status(status, enveloped=True)
    if not (own_key and row in _KEY_REFUSED):
        row = row._replace(reason=details_pb2.ERROR_REASON_UPSTREAM_STREAM_ERROR)
    message = upstream.message or "the upstream sent an error without a message"
    return _error(row, message, upstream, resource, own_key=own_key, retry_after_ms=retry_after_ms)


def _error(
    row: _Row,
    message: str,
    upstream: UpstreamError,
    resource: Resource | None,
    *,
    own_key: bool = False,
    retry_after_ms: int | None = None,
) -> BridgeError:
    if own_key and row in _KEY_REFUSED:
        row = _Row(Code.INTERNAL, details_pb2.ERROR_REASON_CREDENTIALS_REJECTED)
        message = f"the upstream refused the bridge's own key (HTTP {upstream.http_status}): {message}"
    faults = []
    if row.code is Code.INVALID_ARGUMENT and upstream.HasField("param"):
        faults = [Fault(upstream.param, message)]
    return BridgeError(
        row.code,
        row.reason,
        message,
        upstream=upstream,
        retry_after_ms=retry_after_ms,
        faults=faults,
        resource=resource if row.code is Code.NOT_FOUND else None,
    )


def _unexpected(http_status: int, body: bytes, content_type: str) -> str:
    found = f"HTTP {http_status} {_phrase(http_status)}".rstrip()
    kind = content_type.partition(";")[0].strip() or "no content-type"
    what = "an empty body" if not body else f"{len(body)} bytes of {kind}"
    return f"expected a completion or an error envelope from the upstream, found {found} with {what}"


def _phrase(http_status: int) -> str:
    try:
        return HTTPStatus(http_status).phrase
    except ValueError:
        return ""


# Struck out before it is cut, since the end of a text can be what shows a key: the @ of a URL with userinfo.
def _excerpted(body: bytes) -> UpstreamError:
    start = redacted(body[:SCANNED_CHARS_MAX].decode("utf-8", "replace"))
    excerpt = _cut(start, EXCERPT_BYTES_MAX)
    return UpstreamError(body_excerpt=excerpt, truncated=excerpt != start or len(body) > SCANNED_CHARS_MAX)


def _parsed(body: bytes) -> tuple[Any, Source]:
    try:
        value, text = parse(body.removeprefix(b"\xef\xbb\xbf"))
    except JsonError:
        return None, Source(b"")
    return value, Source(text)


# {"error":{…}}, {"error":"text"}, {"detail":…}, {"message":…}; in an event named `error`, any value.
def _envelope(value: Any, source: Source, *, named: bool) -> UpstreamError | None:
    if type(value) is not dict:
        return UpstreamError(message=value) if named and type(value) is str else None
    error = value.get("error")
    if type(error) is dict:
        upstream = _fields(error, source, ("error",))
        for key, item in value.items():
            if key != "error" and item is not None:
                name = f"$.{key}" if key in error else key  # beside the error, and of the same name as a key in it
                _keep(upstream, name, source, (key,))
        return upstream
    words = next((key for key in ("message", "error", "detail") if value.get(key)), None)
    if words is None and not named:
        return None
    upstream = _fields({key: item for key, item in value.items() if key != words}, source, ())
    if words is not None:
        said = value[words] if type(value[words]) is str else _sliced(source, (words,))
        upstream.truncated = upstream.truncated or said is None
        upstream.message = said or ""
    return upstream


def _fields(error: Mapping[str, Any], source: Source, path: tuple[str, ...]) -> UpstreamError:
    upstream = UpstreamError()
    for key, item in error.items():
        if item is None:
            continue
        if key in {"message", "type", "code", "param"} and type(item) is str:
            setattr(upstream, key, item)
        elif key == "code" and type(item) is int:
            upstream.code = str(item)
        else:
            _keep(upstream, key, source, (*path, key))
    return upstream


def _keep(upstream: UpstreamError, name: str, source: Source, path: tuple[str, ...]) -> None:
    text = _sliced(source, path)
    if text is None:
        upstream.truncated = True
    else:
        upstream.extra_json[name] = text


# None where the value nests too deeply to be sliced, which must not cost the caller the rest of the error.
def _sliced(source: Source, path: tuple[str, ...]) -> str | None:
    try:
        return source.cut(path)
    except JsonError:
        return None


# Retry-After


def retry_after_ms(headers: Iterable[tuple[str, str]], *, now_s: float) -> int | None:
    """Give the wait that a response asks for, in milliseconds; None where it asks for none, or in words unknown.

    `retry-after-ms` is OpenAI's; `Retry-After` is seconds, a fraction of them too, or an HTTP date (RFC 9110, 10.2.3).
    `now_s` is Unix time; a date in the past is no wait.
    """
    found = {name.lower(): value.strip() for name, value in headers}
    for name, unit_ms in (("retry-after-ms", 1), ("retry-after", 1000)):
        if (text := found.get(name)) is None:
            continue
        if re.fullmatch(r"\d+(\.\d*)?", text, re.ASCII):
            return math.ceil(min(float(text) * unit_ms, RETRY_MS_MAX))
        if name == "retry-after" and (date_s := _http_date_s(text)) is not None:
            return min(max(math.ceil((date_s - now_s) * 1000), 0), RETRY_MS_MAX)
    return None


def _http_date_s(text: str) -> float | None:
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()


# Redaction

# Where a key can begin: not inside a word of ASCII. \b would not do, since 钥 is of a word too, and so is the n of "\n"
# in JSON text, which is also why no shape takes in a backslash: what is left must be JSON text still.
_EDGE: Final = r"(?:(?<![A-Za-z0-9])|(?<=\\[bfnrt])|(?<=\\u[0-9A-Fa-f]{4}))"
_KEY_HINT: Final = re.compile(r"(?i:sk-|bearer|basic)|:\\*/")
"""What every shape of a key has in it: most texts have none of these, and one look tells."""
_KEY_SHAPES: Final = (
    (re.compile(rf"{_EDGE}[sS][kK]-[A-Za-z0-9_\-*.]{{4,}}"), "sk-[redacted]"),
    (re.compile(rf"{_EDGE}((?i:bearer))\s+[^\s\"',;}}\\]+"), r"\1 [redacted]"),
    # "basic" is a word as well; base64 of a name and a password has digits or capitals.
    (re.compile(rf"{_EDGE}((?i:basic))\s+(?=[a-z+/]*[A-Z0-9])[A-Za-z0-9+/]{{6,}}=*"), r"\1 [redacted]"),
    (re.compile(r"([A-Za-z][A-Za-z0-9+.\-]{0,20}:(?:\\*/){2})[^\s/@\"']+@"), r"\1[redacted]@"),
)


def redacted(text: str) -> str:
    """Strike out whatever is shaped like a key: `sk-…`, `Bearer …`, URLs with userinfo."""
    if _KEY_HINT.search(text):
        for shape, replacement in _KEY_SHAPES:
            text = shape.sub(replacement, text)
    return text


def _clean(text: str, bytes_max: int) -> str:
    """Redact and cut, on a character's edge. What is scanned is bounded; a key across that bound is cut off with it."""
    return _cut(redacted(text[:SCANNED_CHARS_MAX]), bytes_max)


def _cut(text: str, bytes_max: int) -> str:
    return text.encode("utf-8", "replace")[: max(bytes_max, 0)].decode("utf-8", "ignore")


# The status, within its size


class Rendered(NamedTuple):
    """A status as it goes out: `message` for `grpc-message`, and every trailer of the error."""

    code: Code
    message: str
    trailers: tuple[tuple[str, str | bytes], ...]


def rendered(
    error: BridgeError,
    *,
    request_id: str = "",
    trailers: Iterable[tuple[str, str | bytes]] = (),
    forwarded: Iterable[tuple[str, str]] = (),
) -> Rendered:
    """Give the status of an error, all trailers together within TRAILER_BYTES_MAX.

    `trailers` are those that the server has set already: they come out again, first, and whole. `forwarded` are the
    upstream's headers that the caller gets: as many as fit into their share.
    """
    message = _clean(error.message, MESSAGE_BYTES_MAX)
    kept = [*trailers, *_pushback(error)]
    status = status_pb2.Status(code=error.code, message=message)
    for detail in (_error_info(error), _retry_info(error), _request_info(request_id)):
        _pack(status, detail)
    used = (
        _sent_bytes("grpc-message", message)
        + _sent_bytes("grpc-status", "00")
        + sum(_sent_bytes(*each) for each in kept)
    )

    def room(reserve: int) -> int:
        sent = used + _sent_bytes(_DETAILS_KEY, status.SerializeToString())
        return (TRAILER_BYTES_MAX - reserve - sent) * 3 // 4 - _ANY_OVERHEAD_BYTES

    upstream_reserve = 256 if error.upstream is not None else 0
    for optional in (
        _bad_request(error, room(upstream_reserve)),
        _quota_failure(error, message),
        _resource_info(error),
    ):
        if optional is not None and optional.ByteSize() <= room(upstream_reserve):
            _pack(status, optional)
    for header in _fitting(forwarded, min(FORWARDED_BYTES_MAX, room(upstream_reserve) * 4 // 3)):
        kept.append(header)
        used += _sent_bytes(*header)
    if error.upstream is not None:
        _pack(status, _fitted(error.upstream, room(0)))
    return Rendered(error.code, message, (*kept, (_DETAILS_KEY, status.SerializeToString())))


_DETAILS_KEY: Final = "grpc-status-details-bin"
_ANY_OVERHEAD_BYTES: Final = 64  # an Any's type URL, tags and lengths


def _sent_bytes(name: str, value: str | bytes) -> int:
    """Count a trailer as HTTP/2 does: `-bin` values go out as base64, grpc-message percent-encoded."""
    if isinstance(value, bytes):
        size = len(base64.b64encode(value)) if name.endswith("-bin") else len(value)
    else:
        size = len(quote(value, safe=_UNQUOTED) if name == "grpc-message" else value)
    return len(name) + size + _HEADER_OVERHEAD_BYTES


_UNQUOTED: Final = " !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"


def _pack(status: status_pb2.Status, detail: Message | None) -> None:
    if detail is not None:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)


# grpc-java repeats whatever has a pushback, also with a code that its retry policy does not name (RetriableStream), so
# only what may be repeated has one.
_REPEATABLE: Final = (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED)


def _pushback(error: BridgeError) -> list[tuple[str, str]]:
    wait_ms = error.retry_after_ms
    if wait_ms is None or error.code not in _REPEATABLE:
        return []
    return [("grpc-retry-pushback-ms", str(wait_ms if wait_ms <= PUSHBACK_MS_MAX else -1))]


def _error_info(error: BridgeError) -> rpc_pb2.ErrorInfo:
    metadata = {}
    if (upstream := error.upstream) is not None:
        known = (("upstreamType", upstream.type), ("upstreamCode", upstream.code), ("param", upstream.param))
        metadata = {name: _clean(value, DETAIL_TEXT_BYTES_MAX // 2) for name, value in known if value}
        metadata["httpStatus"] = str(upstream.http_status)
    domain = DOMAIN if error.reason >= details_pb2.ERROR_REASON_INVALID_REQUEST else UPSTREAM_DOMAIN
    return rpc_pb2.ErrorInfo(reason=error.reason_name, domain=domain, metadata=metadata)


def _retry_info(error: BridgeError) -> rpc_pb2.RetryInfo | None:
    if error.retry_after_ms is None:
        return None
    info = rpc_pb2.RetryInfo()
    info.retry_delay.FromMilliseconds(error.retry_after_ms)
    return info


def _request_info(request_id: str) -> rpc_pb2.RequestInfo | None:
    return rpc_pb2.RequestInfo(request_id=_cut(request_id, DETAIL_TEXT_BYTES_MAX)) if request_id else None


def _bad_request(error: BridgeError, bytes_max: int) -> rpc_pb2.BadRequest | None:
    if not error.faults:
        return None
    detail = rpc_pb2.BadRequest()
    for index, fault in enumerate(error.faults):
        violation = detail.field_violations.add(
            field=_clean(fault.field, DETAIL_TEXT_BYTES_MAX),
            description=_clean(fault.description, DETAIL_TEXT_BYTES_MAX),
        )
        left = len(error.faults) - index
        if index and detail.ByteSize() > bytes_max - (_ANY_OVERHEAD_BYTES if left > 1 else 0):
            violation.field = ""
            violation.description = f"and {left} more"
            break
    return detail


def _quota_failure(error: BridgeError, message: str) -> rpc_pb2.QuotaFailure | None:
    upstream = error.upstream
    if upstream is None or _QUOTA_WORD not in {upstream.code, upstream.type}:
        return None
    violation = rpc_pb2.QuotaFailure.Violation(subject=_QUOTA_WORD, description=_cut(message, DETAIL_TEXT_BYTES_MAX))
    return rpc_pb2.QuotaFailure(violations=[violation])


def _resource_info(error: BridgeError) -> rpc_pb2.ResourceInfo | None:
    if error.resource is None:
        return None
    name = _clean(error.resource.name, DETAIL_TEXT_BYTES_MAX)
    return rpc_pb2.ResourceInfo(resource_type=error.resource.type, resource_name=name)


def _fitting(headers: Iterable[tuple[str, str]], bytes_max: int) -> list[tuple[str, str]]:
    fitting = []
    for name, value in headers:
        bytes_max -= _sent_bytes(name, value)
        if bytes_max < 0:
            break
        fitting.append((name, value))
    return fitting


def _fitted(upstream: UpstreamError, bytes_max: int) -> UpstreamError:
    """Give the upstream's error cut from its end: other keys first, then the excerpt, then the message."""
    fitted = UpstreamError(http_status=upstream.http_status, chunks_delivered=upstream.chunks_delivered, truncated=True)
    if upstream.HasField("partial_usage") and upstream.partial_usage.ByteSize() <= DETAIL_TEXT_BYTES_MAX:
        fitted.partial_usage.CopyFrom(upstream.partial_usage)
    truncated = upstream.truncated or fitted.HasField("partial_usage") != upstream.HasField("partial_usage")
    shares = dict.fromkeys(("type", "code", "param"), DETAIL_TEXT_BYTES_MAX) | {
        "message": bytes_max,
        "body_excerpt": bytes_max,
    }
    present = {each.name: value for each, value in upstream.ListFields()}
    for name, share in shares.items():
        if (whole := present.get(name)) is not None:
            text = _clean(whole, min(share, bytes_max - fitted.ByteSize() - _FIELD_OVERHEAD_BYTES))
            truncated = truncated or text != redacted(whole[:SCANNED_CHARS_MAX]) or len(whole) > SCANNED_CHARS_MAX
            setattr(fitted, name, text)
    for whole_key, whole in upstream.extra_json.items():
        if len(whole_key) + len(whole) > SCANNED_CHARS_MAX:
            truncated = True
            continue
        key, text = redacted(whole_key), redacted(whole)
        size = len(key.encode()) + len(text.encode()) + 2 * _FIELD_OVERHEAD_BYTES
        if fitted.ByteSize() + size > bytes_max:
            truncated = True
        else:
            fitted.extra_json[key] = text
    fitted.truncated = truncated
    return fitted


_FIELD_OVERHEAD_BYTES: Final = 8
