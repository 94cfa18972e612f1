"""Whether a request becomes a call: it does if it is gRPC and its method is known.

Else it is answered with a block that is mostly coded once. What is cheapest to find out is looked at first. Requests
for which there is no room do not come here (`arrivals.py`); whether there is room for this caller's is asked later.
"""

from typing import Final, NamedTuple

from bridge.core.errors import Code
from bridge.server.h2.headers import Request
from bridge.server.native import answers
from bridge.server.native.shared import Shared
from bridge.server.protocols.framing import MessageError
from bridge.server.protocols.grpc import CONTENT_TYPE, RequestHead, is_content_type, read_head
from bridge.server.rpc import RpcMethod

__all__ = ["Accepted", "Refused", "judge"]

_WITH_PROTO: Final = CONTENT_TYPE + b"+proto"


class Accepted(NamedTuple):
    """A call: its method, and what its headers say."""

    route: RpcMethod
    head: RequestHead


class Refused(NamedTuple):
    """A coded answer. `is_plain`: it is HTTP's and has a body, since the request is no gRPC."""

    block: bytes
    is_plain: bool = False


def judge(request: Request | None, shared: Shared) -> Accepted | Refused:
    """Return what becomes of a request; None is one whose headers were too large."""
    if request is None:
        return Refused(answers.TOO_LARGE)
    if request.method != b"POST":
        return Refused(answers.PlainAnswer.NOT_POST, is_plain=request.method != b"HEAD")  # RFC 9110, 9.3.2
    if not _is_grpc(request.get(b"content-type") or b""):
        return Refused(answers.PlainAnswer.NOT_GRPC, is_plain=True)
    if request.get(b"te") is None:
        return Refused(answers.NO_TRAILERS)
    route = shared.routes.get(request.path)
    if route is None:
        return Refused(answers.UNKNOWN_METHOD)
    encodings = shared.settings.connections.encodings
    try:
        return Accepted(route, read_head(request.headers, encodings))
    except MessageError as error:
        if error.code is Code.UNIMPLEMENTED:
            return Refused(answers.encode_unsupported_encoding(error.message, encodings))
        return Refused(answers.encode_refusal(error.code, error.message))


def _is_grpc(content_type: bytes) -> bool:
    """Return whether a content type is gRPC's with protobuf, which is what it means without a word for the format."""
    if content_type == CONTENT_TYPE:
        return True
    content_type = content_type.lower()
    return is_content_type(content_type, _WITH_PROTO) or (
        is_content_type(content_type) and not content_type.startswith(CONTENT_TYPE + b"+")
    )
