"""A failed call, as a person sees it: code, message, a line for each detail, and what to do."""

import re
from typing import Final, cast

import grpc
from google.protobuf import text_format
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as rpc_pb2
from grpc_status import rpc_status

from ollmbridge.v1.error_details_pb2 import UpstreamError

__all__ = ["ADVICE", "describe_error", "escape_controls"]

ADVICE: Final = {
    "UPSTREAM_INVALID_REQUEST": "fix the request: the upstream's message says which part is wrong",
    "UPSTREAM_UNAUTHENTICATED": "send a valid key as authorization metadata (ollm-bridge chat: OLLM_API_KEY)",
    "UPSTREAM_PAYMENT_REQUIRED": "settle the account, then retry",
    "UPSTREAM_PERMISSION_DENIED": "use a key that may use this model",
    "UPSTREAM_NOT_FOUND": "use a model, function or variant that the gateway has",
    "UPSTREAM_CONFLICT": "decide whether to retry: the call may have run",
    "UPSTREAM_RATE_LIMITED": "wait as long as RetryInfo says, then retry",
    "UPSTREAM_PROVIDER_TIMEOUT": "use a faster model or ask for less",
    "UPSTREAM_PROVIDER_FAILED": (
        "retry with backoff; if it persists, check whether the message reports a fault of the request"
    ),
    "UPSTREAM_UNAVAILABLE": "retry with backoff",
    "UPSTREAM_INTERNAL": "report the request id to the gateway's operators",
    "UPSTREAM_UNIMPLEMENTED": "remove from the request what the gateway does not support",
    "UPSTREAM_STREAM_ERROR": "decide whether to retry: the completion is not whole",
    "UPSTREAM_REFUSED": "read the message: the gateway does not accept this request",
    "INVALID_REQUEST": "fix the listed fields",
    "UNDECODABLE_REQUEST": "generate the client from the current protos",
    "INVALID_METADATA": "send less metadata, in printable ASCII only",
    "OVERLOADED": "wait as long as RetryInfo says, then retry; if it persists, add replicas or raise calls_max",
    "DRAINING": "retry on another replica; if the code is ABORTED, the call may have run",
    "CREDENTIALS_REJECTED": "configure a valid key for the bridge: upstream.api_key_file",
    "UPSTREAM_UNREACHABLE": "check upstream.base_url, DNS and the network (ollm-bridge check)",
    "UPSTREAM_DISCONNECTED": "decide whether to retry: the call may have run",
    "UPSTREAM_TIMEOUT": "retry, or raise the timeout that the message names",
    "INCOMPLETE_STREAM": "decide whether to retry: the completion is not whole",
    "INVALID_UPSTREAM_RESPONSE": "check that upstream.base_url is a gateway of this API (ollm-bridge check)",
    "UPSTREAM_RESPONSE_TOO_LARGE": "ask for less, or raise upstream.response_bytes_max or upstream.event_bytes_max",
    "BRIDGE_FAULT": "report it: the bridge's log has the stack, under the request id",
    "CALLER_UNAUTHENTICATED": "send a token from the bridge's tokens_file as authorization metadata",
    "CALLER_DENIED": "add the caller's identity to tls.allowed_identities, or use another certificate",
}
"""What a person can do, by ErrorInfo's reason."""
_ADVICE_BY_CODE: Final = {
    "UNAVAILABLE": "check that a bridge listens at this address",
    "DEADLINE_EXCEEDED": "give the call more time",
    "UNIMPLEMENTED": "check that the address is the call port of a bridge",
}
"""What to do about a status without ErrorInfo, which no bridge has sent."""

_DETAILS: Final[tuple[type[Message], ...]] = (
    rpc_pb2.ErrorInfo,
    rpc_pb2.RetryInfo,
    rpc_pb2.BadRequest,
    rpc_pb2.QuotaFailure,
    rpc_pb2.RequestInfo,
    rpc_pb2.ResourceInfo,
    UpstreamError,
)


def describe_error(error: grpc.aio.AioRpcError) -> list[str]:
    """Return the lines that describe a failed call."""
    code = error.code().name
    lines = [f"{code}: {escape_controls(error.details() or '')}"]
    advice = _ADVICE_BY_CODE.get(code)
    for detail in _unpack_details(error):
        text = text_format.MessageToString(detail, as_one_line=True, as_utf8=True)
        lines.append(f"  {detail.DESCRIPTOR.name}: {escape_controls(text)}")
        if isinstance(detail, rpc_pb2.ErrorInfo):
            advice = ADVICE.get(detail.reason)
    if advice:
        lines.append(f"  what to do: {advice}")
    return lines


def _unpack_details(error: grpc.aio.AioRpcError) -> list[Message]:
    """Return the details of known types. A status whose trailer contradicts its code has none that can be trusted."""
    try:
        status = rpc_status.from_call(cast("grpc.Call", error))
    except ValueError:
        return []
    found = []
    for packed in status.details if status is not None else ():
        for kind in _DETAILS:
            detail = kind()
            if packed.Unpack(detail):
                found.append(detail)
    return found


def escape_controls(text: str) -> str:
    """Return a text that is safe on a terminal: control characters could move the cursor or change the title."""
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
