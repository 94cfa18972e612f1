"""The bridge's own words on a failure, for its operators: what its log says beside code and reason.

A message may repeat what a gateway says, and that may be content, so only words of our own are taken: the whole message
of reasons that have no others, and of the rest the part before the first colon, where our own words stand. A failure
that the gateway reports, or that a request causes, has none: its status and its message are the caller's.
"""

from typing import Final

from bridge.core.errors import BridgeError
from bridge.core.redact import redact
from ollmbridge.v1 import error_details_pb2 as pb

__all__ = ["find_detail"]

_CHARS_MAX: Final = 300
_OWN: Final = frozenset(
    {
        pb.ERROR_REASON_OVERLOADED,
        pb.ERROR_REASON_QUEUE_TOO_LONG,
        pb.ERROR_REASON_DRAINING,
        pb.ERROR_REASON_UPSTREAM_UNREACHABLE,
        pb.ERROR_REASON_UPSTREAM_DISCONNECTED,
        pb.ERROR_REASON_UPSTREAM_TIMEOUT,
        pb.ERROR_REASON_INCOMPLETE_COMPLETION,
        pb.ERROR_REASON_UPSTREAM_RESPONSE_TOO_LARGE,
        pb.ERROR_REASON_CALLER_UNAUTHENTICATED,
        pb.ERROR_REASON_CALLER_DENIED,
    }
)
_INVALID: Final = pb.ERROR_REASON_INVALID_UPSTREAM_RESPONSE
_OWN_TO_THE_COLON: Final = frozenset({pb.ERROR_REASON_CREDENTIALS_REJECTED, _INVALID})


def find_detail(failure: BridgeError) -> str:
    """Return what the log says of a failure, "" if it has no words of our own."""
    if failure.reason in _OWN:
        text = failure.message
    elif failure.reason in _OWN_TO_THE_COLON:
        text = failure.message.partition(":")[0]
        if failure.reason == _INVALID and failure.upstream is not None and failure.upstream.HasField("message"):
            text = f"the gateway answered HTTP {failure.upstream.http_status}"
    else:
        return ""
    text = redact(text)
    return text if len(text) <= _CHARS_MAX else f"{text[: _CHARS_MAX - 1]}…"
