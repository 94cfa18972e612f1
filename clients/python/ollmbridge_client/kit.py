"""Connect to a bridge, and read a failed call."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2 as rpc_pb2
from google.rpc import status_pb2

from ollmbridge.v1.error_details_pb2 import UpstreamError

Options: TypeAlias = Sequence[tuple[str, Any]]
File: TypeAlias = "str | Path | None"
_Message = TypeVar("_Message", bound=Message)

_OPTIONS: Final[Mapping[str, Any]] = {
    "grpc.keepalive_time_ms": 30_000,
    "grpc.keepalive_permit_without_calls": 1,
    "grpc.max_receive_message_length": 32 * 1024 * 1024,  # an answer may have 16 MiB; grpc's own limit is 4 MiB
    "grpc.per_rpc_retry_buffer_size": 8 * 1024 * 1024,  # a request may have 4 MiB; above 256 KiB grpc retries none
    "grpc.service_config": """{"methodConfig": [{
      "name": [{"service": "ollmbridge.v1.ChatCompletionService"}],
      "retryPolicy": {"maxAttempts": 4, "initialBackoff": "0.1s", "maxBackoff": "5s", "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"]}}]}""",
}


class Tls(NamedTuple):
    """PEM files: of the authorities to trust (None: the system's), and of the client's certificate and its key."""

    ca: File = None
    cert: File = None
    key: File = None


def connect(address: str, tls: Tls | None = None, options: Options = ()) -> grpc.Channel:
    """Return a channel to a bridge. `options` are grpc's, and replace the kit's."""
    channel: grpc.Channel = _open(grpc, address, tls, options)
    return channel


def connect_async(address: str, tls: Tls | None = None, options: Options = ()) -> grpc.aio.Channel:
    """Return a channel for asyncio."""
    channel: grpc.aio.Channel = _open(grpc.aio, address, tls, options)
    return channel


def _open(library: Any, address: str, tls: Tls | None, options: Options) -> Any:
    merged = list({**_OPTIONS, **dict(options)}.items())
    if tls is None:
        return library.insecure_channel(address, merged)
    ca, cert, key = (Path(file).read_bytes() if file else None for file in tls)
    return library.secure_channel(address, grpc.ssl_channel_credentials(ca, key, cert), merged)


class Failure(NamedTuple):
    """A failed call. Without the bridge's details, as from a proxy, all but code and message is empty."""

    code: str
    message: str
    reason: str
    domain: str
    metadata: Mapping[str, str]
    retry_after_s: float | None
    violations: list[tuple[str, str]]  # field and description
    request_id: str
    upstream: UpstreamError
    upstream_words: str


def failure(error: Any) -> Failure:
    """Return what a `grpc.RpcError` says, of grpc or of grpc.aio."""
    packed = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
    status = _parse(status_pb2.Status, packed)
    info, retry = _find_detail(status, rpc_pb2.ErrorInfo), _find_detail(status, rpc_pb2.RetryInfo)
    bad, upstream = _find_detail(status, rpc_pb2.BadRequest), _find_detail(status, UpstreamError)
    return Failure(
        code=error.code().name,
        message=error.details() or "",
        reason=info.reason,
        domain=info.domain,
        metadata=dict(info.metadata),
        retry_after_s=retry.retry_delay.ToNanoseconds() / 1e9 if retry.HasField("retry_delay") else None,
        violations=[(each.field, each.description) for each in bad.field_violations],
        request_id=_find_detail(status, rpc_pb2.RequestInfo).request_id,
        upstream=upstream,
        upstream_words=upstream.message or upstream.body_excerpt,
    )


def _find_detail(status: status_pb2.Status, kind: type[_Message]) -> _Message:
    packed = next((each.value for each in status.details if each.Is(kind.DESCRIPTOR)), b"")
    return _parse(kind, packed)


def _parse(kind: type[_Message], packed: bytes) -> _Message:
    """Return a message; an empty one if its bytes are broken, as those of a proxy may be."""
    try:
        return kind.FromString(packed)
    except DecodeError:
        return kind()
