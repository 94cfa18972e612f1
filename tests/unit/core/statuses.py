"""How a test reads a status: its size by the standards, its details by their names. No code of the bridge's."""

import base64
from typing import Any

from google.rpc import error_details_pb2 as rpc_pb2
from google.rpc import status_pb2

from bridge.core.errors import BridgeError
from bridge.core.status import GrpcStatus, to_grpc_status
from ollmbridge.v1.error_details_pb2 import UpstreamError

STATUS_BYTES_MAX = 6 * 1024


def count_sent_bytes(status: GrpcStatus) -> int:
    """Return the size of all trailers as HTTP/2 counts them, by RFC 9113 and the gRPC protocol."""
    quoted = sum(1 if 0x20 <= byte <= 0x7E and byte != 0x25 else 3 for byte in status.message.encode())
    sizes = [len("grpc-message") + quoted, len("grpc-status") + len(str(int(status.code)))]
    for name, value in status.trailers:
        raw = value if isinstance(value, bytes) else value.encode()
        sizes.append(len(name) + len(base64.b64encode(raw) if name.endswith("-bin") else raw))
    return sum(sizes) + 32 * len(sizes)


def read_status(status: GrpcStatus) -> status_pb2.Status:
    """Return the google.rpc.Status of the trailers, which must say the same as the rest."""
    (packed,) = [value for name, value in status.trailers if name == "grpc-status-details-bin"]
    found = status_pb2.Status.FromString(packed)
    assert (found.code, found.message) == (status.code, status.message)
    return found


def read_details(status: GrpcStatus) -> dict[str, Any]:
    """Return the details by the name of their type; each type comes once at most."""
    found: dict[str, Any] = {}
    for packed in read_status(status).details:
        name = packed.type_url.rpartition(".")[2]
        assert name not in found
        found[name] = (UpstreamError if name == "UpstreamError" else getattr(rpc_pb2, name))()
        assert packed.Unpack(found[name])
    return found


def render_details(error: BridgeError, **options: Any) -> dict[str, Any]:
    return read_details(to_grpc_status(error, **options))
