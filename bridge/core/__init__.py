"""The translation itself: bytes and values in, bytes and values out.

Nothing here waits, reads a clock or the environment, logs, opens a socket or imports grpc; what needs the time gets it
as an argument. This is the door, for what translates a call; a smaller part is imported from its own module. Modules in
here import each other, not the door.
"""

from bridge.core.chat import ChatStream, decode_reply, decode_request_json, encode_request, requested_resource
from bridge.core.errors import Asked, BridgeError, Code, Resource, Violation
from bridge.core.headers import HeaderPolicy
from bridge.core.http_errors import error_from_response, error_from_value, parse_retry_after
from bridge.core.reasons import REASONS, SERVICE_NAME
from bridge.core.status import GrpcStatus, to_grpc_status

__all__ = [
    "REASONS",
    "SERVICE_NAME",
    "Asked",
    "BridgeError",
    "ChatStream",
    "Code",
    "GrpcStatus",
    "HeaderPolicy",
    "Resource",
    "Violation",
    "decode_reply",
    "decode_request_json",
    "encode_request",
    "error_from_response",
    "error_from_value",
    "parse_retry_after",
    "requested_resource",
    "to_grpc_status",
]
