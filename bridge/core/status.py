"""From a BridgeError to the gRPC status that goes out, within its size.

The status travels in HTTP/2 trailers, and peers drop it if they are above 8 KiB. So all trailers together stay within
TRAILER_BYTES_MAX, counted as they are sent: a header is its name, its value and 32 bytes (RFC 9113, 6.5.2), `-bin`
values are base64, so that three bytes of a detail cost four, and `grpc-message` is percent-encoded.

Code, message, ErrorInfo, RetryInfo and RequestInfo are always sent, each cut to a size of its own. What else there is
comes while it fits: the other details, the upstream's headers, and at last UpstreamError with as many of the upstream's
words as there is room for. Every text is redacted before it is cut.
"""

import base64
from collections.abc import Iterable
from typing import Final, NamedTuple
from urllib.parse import quote

from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as rpc_pb2
from google.rpc import status_pb2

from bridge.core.error_status import QUOTA_WORD
from bridge.core.errors import BridgeError, Code
from bridge.core.reasons import REASONS
from bridge.core.redact import SCANNED_CHARS_MAX, redact, redact_and_truncate, truncate
from ollmbridge.v1.error_details_pb2 import UpstreamError

__all__ = ["GrpcStatus", "to_grpc_status"]

TRAILER_BYTES_MAX: Final = 6 * 1024
"""All trailers of a failed call, as sent. grpc-go and others drop the status above 8 KiB."""
MESSAGE_BYTES_MAX: Final = 1024
"""UTF-8 bytes of the status message."""
FORWARDED_BYTES_MAX: Final = 1024
"""Of the trailers, what the upstream's forwarded headers may take."""
EXCERPT_BYTES_MAX: Final = 2048
"""Of a body or an event that is no envelope."""
DETAIL_TEXT_BYTES_MAX: Final = 200
"""Of one text in a detail other than UpstreamError: enough for a path, a code or a sentence."""
PUSHBACK_MS_MAX: Final = 60_000
"""Longest wait that grpc-retry-pushback-ms asks for: a client that sleeps longer holds its call open for nothing."""

_DETAILS_KEY: Final = "grpc-status-details-bin"
_HEADER_OVERHEAD_BYTES: Final = 32
"""What HTTP/2 adds to the name and value of each header."""
_ANY_OVERHEAD_BYTES: Final = 64
"""What packing adds to a detail: an Any's type URL, tags and lengths."""
_FIELD_OVERHEAD_BYTES: Final = 8
"""What a string field adds to its text: tag and length."""
_UPSTREAM_RESERVE_BYTES: Final = 256
"""Trailer bytes that details before UpstreamError leave to it: without them it could say nothing."""
_SHARES: Final = dict.fromkeys(("type", "code", "param"), DETAIL_TEXT_BYTES_MAX)
"""Of UpstreamError, what its short texts may take."""
_UNQUOTED: Final = " !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"
"""What percent-encoding leaves as it is in grpc-message, beside letters and digits."""

# grpc-java retries whatever has a pushback, also with a code that its retry policy does not name (RetriableStream), so
# only what may be retried has one.
_RETRYABLE_CODES: Final = (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED)


class GrpcStatus(NamedTuple):
    """A status as it goes out: `message` for `grpc-message`, and every trailer of the error."""

    code: Code
    message: str
    trailers: tuple[tuple[str, str | bytes], ...]


def to_grpc_status(
    error: BridgeError,
    *,
    request_id: str = "",
    trailers: Iterable[tuple[str, str | bytes]] = (),
    forwarded: Iterable[tuple[str, str]] = (),
    secrets: tuple[str, ...] = (),
) -> GrpcStatus:
    """Return the status of an error, all trailers together within TRAILER_BYTES_MAX.

    `trailers` are those that the server has set already: they are in the result, first and whole. `forwarded` are the
    upstream's headers that the caller gets: as many as fit into their share. `secrets` are redacted in every text.
    """
    draft = _Draft(error.code, redact_and_truncate(error.message, MESSAGE_BYTES_MAX, secrets))
    for trailer in (*trailers, *_get_pushback(error)):
        draft.add_trailer(*trailer)
    for detail in (_build_error_info(error, secrets), _build_retry_info(error), _build_request_info(request_id)):
        draft.add_detail(detail)
    reserve = _UPSTREAM_RESERVE_BYTES if error.upstream is not None else 0
    for optional in (
        _build_bad_request(error, draft.count_detail_bytes_left(reserve), secrets),
        _build_quota_failure(error, draft.message),
        _build_resource_info(error),
    ):
        if optional is not None and optional.ByteSize() <= draft.count_detail_bytes_left(reserve):
            draft.add_detail(optional)
    # A detail's bytes are three quarters of what they cost; headers go out as they are.
    forwarded_bytes_max = min(FORWARDED_BYTES_MAX, draft.count_detail_bytes_left(reserve) * 4 // 3)
    for trailer in _take_headers(forwarded, forwarded_bytes_max):
        draft.add_trailer(*trailer)
    if error.upstream is not None:
        draft.add_detail(_cut_upstream_error(error.upstream, draft.count_detail_bytes_left(), secrets))
    return draft.finish()


class _Draft:
    """A status that grows, and the bytes that are left for it."""

    def __init__(self, code: Code, message: str) -> None:
        self.message = message
        self._code = code
        self._status = status_pb2.Status(code=code, message=message)
        self._trailers: list[tuple[str, str | bytes]] = []
        self._trailer_bytes = _count_bytes("grpc-message", message) + _count_bytes("grpc-status", "00")

    def add_trailer(self, name: str, value: str | bytes) -> None:
        self._trailers.append((name, value))
        self._trailer_bytes += _count_bytes(name, value)

    def add_detail(self, detail: Message | None) -> None:
        if detail is not None:
            packed = any_pb2.Any()
            packed.Pack(detail)
            self._status.details.append(packed)

    def count_detail_bytes_left(self, reserve: int = 0) -> int:
        """Return how many bytes the next detail may have, if `reserve` bytes of trailers are kept for later."""
        sent = self._trailer_bytes + _count_bytes(_DETAILS_KEY, self._status.SerializeToString())
        return (TRAILER_BYTES_MAX - reserve - sent) * 3 // 4 - _ANY_OVERHEAD_BYTES

    def finish(self) -> GrpcStatus:
        details = (_DETAILS_KEY, self._status.SerializeToString())
        return GrpcStatus(self._code, self.message, (*self._trailers, details))


def _count_bytes(name: str, value: str | bytes) -> int:
    """Return the size of a trailer as it is sent."""
    if isinstance(value, bytes):
        size = len(base64.b64encode(value)) if name.endswith("-bin") else len(value)
    else:
        size = len(quote(value, safe=_UNQUOTED) if name == "grpc-message" else value)
    return len(name) + size + _HEADER_OVERHEAD_BYTES


def _take_headers(headers: Iterable[tuple[str, str]], bytes_max: int) -> list[tuple[str, str]]:
    """Return the first of the headers that have, together, a number of bytes at most."""
    taken = []
    for name, value in headers:
        bytes_max -= _count_bytes(name, value)
        if bytes_max < 0:
            break
        taken.append((name, value))
    return taken


# The details, in their order


def _get_pushback(error: BridgeError) -> list[tuple[str, str]]:
    wait_ms = error.retry_after_ms
    if wait_ms is None or error.code not in _RETRYABLE_CODES:
        return []
    return [("grpc-retry-pushback-ms", str(wait_ms if wait_ms <= PUSHBACK_MS_MAX else -1))]


def _build_error_info(error: BridgeError, secrets: tuple[str, ...]) -> rpc_pb2.ErrorInfo:
    metadata = {}
    if (upstream := error.upstream) is not None:
        known = (("upstreamType", upstream.type), ("upstreamCode", upstream.code), ("param", upstream.param))
        metadata = {
            name: redact_and_truncate(value, DETAIL_TEXT_BYTES_MAX // 2, secrets) for name, value in known if value
        }
        metadata["httpStatus"] = str(upstream.http_status)
    return rpc_pb2.ErrorInfo(reason=error.reason_name, domain=REASONS[error.reason].domain, metadata=metadata)


def _build_retry_info(error: BridgeError) -> rpc_pb2.RetryInfo | None:
    if error.retry_after_ms is None:
        return None
    info = rpc_pb2.RetryInfo()
    info.retry_delay.FromMilliseconds(error.retry_after_ms)
    return info


def _build_request_info(request_id: str) -> rpc_pb2.RequestInfo | None:
    return rpc_pb2.RequestInfo(request_id=truncate(request_id, DETAIL_TEXT_BYTES_MAX)) if request_id else None


def _build_bad_request(error: BridgeError, bytes_max: int, secrets: tuple[str, ...]) -> rpc_pb2.BadRequest | None:
    if not error.violations:
        return None
    detail = rpc_pb2.BadRequest()
    for index, violation in enumerate(error.violations):
        added = detail.field_violations.add(
            field=redact_and_truncate(violation.field, DETAIL_TEXT_BYTES_MAX, secrets),
            description=redact_and_truncate(violation.description, DETAIL_TEXT_BYTES_MAX, secrets),
        )
        left = len(error.violations) - index
        if index and detail.ByteSize() > bytes_max - (_ANY_OVERHEAD_BYTES if left > 1 else 0):
            added.field = ""
            added.description = f"and {left} more"
            break
    return detail


def _build_quota_failure(error: BridgeError, message: str) -> rpc_pb2.QuotaFailure | None:
    upstream = error.upstream
    if upstream is None or QUOTA_WORD not in {upstream.code, upstream.type}:
        return None
    description = truncate(message, DETAIL_TEXT_BYTES_MAX)
    return rpc_pb2.QuotaFailure(
        violations=[rpc_pb2.QuotaFailure.Violation(subject=QUOTA_WORD, description=description)]
    )


def _build_resource_info(error: BridgeError) -> rpc_pb2.ResourceInfo | None:
    if error.resource is None:
        return None
    name = redact_and_truncate(error.resource.name, DETAIL_TEXT_BYTES_MAX)
    return rpc_pb2.ResourceInfo(resource_type=error.resource.type, resource_name=name)


def _cut_upstream_error(upstream: UpstreamError, bytes_max: int, secrets: tuple[str, ...]) -> UpstreamError:
    """Return the upstream's error cut from its end: other keys first, then the excerpt, then the message."""
    cut = UpstreamError(http_status=upstream.http_status, chunks_delivered=upstream.chunks_delivered, truncated=True)
    whole = [
        _copy_usage(upstream, cut),
        _copy_texts(upstream, cut, bytes_max, secrets),
        _copy_extra(upstream, cut, bytes_max, secrets),
    ]
    cut.truncated = upstream.truncated or not all(whole)
    return cut


# Each of these says whether all of it was copied.


def _copy_usage(upstream: UpstreamError, cut: UpstreamError) -> bool:
    if not upstream.HasField("partial_usage"):
        return True
    if upstream.partial_usage.ByteSize() > DETAIL_TEXT_BYTES_MAX:
        return False
    cut.partial_usage.CopyFrom(upstream.partial_usage)
    return True


def _copy_texts(upstream: UpstreamError, cut: UpstreamError, bytes_max: int, secrets: tuple[str, ...]) -> bool:
    is_whole = True
    present = {field.name: value for field, value in upstream.ListFields()}
    for name, share in (*_SHARES.items(), ("message", bytes_max), ("body_excerpt", min(bytes_max, EXCERPT_BYTES_MAX))):
        if (text := present.get(name)) is not None:
            kept = redact_and_truncate(text, min(share, bytes_max - cut.ByteSize() - _FIELD_OVERHEAD_BYTES), secrets)
            is_whole = is_whole and len(text) <= SCANNED_CHARS_MAX and kept == redact(text, secrets)
            setattr(cut, name, kept)
    return is_whole


def _copy_extra(upstream: UpstreamError, cut: UpstreamError, bytes_max: int, secrets: tuple[str, ...]) -> bool:
    is_whole = True
    for key, text in upstream.extra_json.items():
        is_scanned = len(key) + len(text) <= SCANNED_CHARS_MAX
        kept_key, kept = (redact(key, secrets), redact(text, secrets)) if is_scanned else ("", "")
        size = len(kept_key.encode()) + len(kept.encode()) + 2 * _FIELD_OVERHEAD_BYTES
        if is_scanned and cut.ByteSize() + size <= bytes_max:
            cut.extra_json[kept_key] = kept
        else:
            is_whole = False
    return is_whole
