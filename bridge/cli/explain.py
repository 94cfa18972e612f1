"""A failed call, as a person sees it: code, message, a line for each detail, and what to do."""

from typing import Final, cast

import grpc
from google.protobuf import text_format
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as rpc_pb2
from grpc_status import rpc_status

from bridge.core.reasons import find_reason
from bridge.core.terminal import escape_controls
from ollmbridge.v1.error_details_pb2 import UpstreamError

__all__ = ["describe_error"]

_ADVICE_BY_CODE: Final = {
    "UNAVAILABLE": "check that a bridge listens at this address (its call port), and whether by TLS (--tls)",
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
            row = find_reason(detail.reason)
            advice = row.advice if row is not None else None
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
