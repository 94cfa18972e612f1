"""A status of gRPC, read by the standards: its details by their names, and its size as it is sent.

It shares no code with the bridge; of ours it has the contract's messages alone.
"""

import base64
from collections.abc import Iterable, Mapping
from typing import Any, Final

from google.protobuf.message import Message
from google.rpc import error_details_pb2 as rpc_pb2
from google.rpc import status_pb2

from ollmbridge.v1.error_details_pb2 import UpstreamError

__all__ = [
    "STATUS_BYTES_MAX",
    "check_overloaded",
    "count_sent_bytes",
    "parse_status",
    "read_details",
    "read_status",
    "unpack_details",
]

Status = tuple[int, str, Iterable[tuple[str, str | bytes]]]
"""A code, a message and trailers."""
STATUS_BYTES_MAX: Final = 6 * 1024
_KINDS: Final[tuple[type[Message], ...]] = (
    *(rpc_pb2.ErrorInfo, rpc_pb2.RetryInfo, rpc_pb2.BadRequest, rpc_pb2.QuotaFailure),
    *(rpc_pb2.RequestInfo, rpc_pb2.ResourceInfo, UpstreamError),
)


def parse_status(packed: Any) -> status_pb2.Status:
    """Return the status in the bytes of `grpc-status-details-bin`."""
    return status_pb2.Status.FromString(packed)


def unpack_details(status: status_pb2.Status | None) -> dict[str, Any]:
    """Return the details by the name of their type, such as "RetryInfo": each is of a known type, and comes once."""
    found: dict[str, Any] = {}
    for packed in status.details if status is not None else ():
        (kind,) = [kind for kind in _KINDS if packed.Is(kind.DESCRIPTOR)]
        assert kind.DESCRIPTOR.name not in found
        found[kind.DESCRIPTOR.name] = kind.FromString(packed.value)
    return found


def read_status(status: Status) -> status_pb2.Status:
    """Return the google.rpc.Status of the trailers, which must say the same as the rest."""
    code, message, trailers = status
    (packed,) = [value for name, value in trailers if name == "grpc-status-details-bin"]
    found = parse_status(packed)
    assert (found.code, found.message) == (code, message)
    return found


def check_overloaded(trailers: Mapping[bytes, bytes], message: bytes) -> None:
    """Assert that a call was refused as OVERLOADED, with the time to wait in both of its forms."""
    assert trailers[b"grpc-status"] == b"8"
    assert trailers[b"grpc-message"] == message
    assert trailers[b"grpc-retry-pushback-ms"] == b"1000"
    assert b"OVERLOADED" in trailers[b"grpc-status-details-bin"]
    assert b"google.rpc.RetryInfo" in trailers[b"grpc-status-details-bin"]


def read_details(status: Status) -> dict[str, Any]:
    return unpack_details(read_status(status))


def count_sent_bytes(code: int, message: str, trailers: Iterable[tuple[str, str | bytes]]) -> int:
    """Return the size of a status with all trailers as HTTP/2 counts them, by RFC 9113, 6.5.2, and the gRPC protocol.

    `-bin` is sent as base64, and grpc-message percent-encoded.
    """
    quoted = sum(1 if 0x20 <= byte <= 0x7E and byte != 0x25 else 3 for byte in message.encode())
    sizes = [len("grpc-message") + quoted, len("grpc-status") + len(str(int(code)))]
    for name, value in trailers:
        raw = value if isinstance(value, bytes) else value.encode()
        sizes.append(len(name) + len(base64.b64encode(raw) if name.endswith("-bin") else raw))
    return sum(sizes) + 32 * len(sizes)
