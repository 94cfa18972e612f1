"""The one table of reasons: which gRPC code each has, in which domain, and what a person can do about it.

A reason is a value of `ollmbridge.v1.ErrorReason`; the proto says what it means. A new failure is a value there and a
row here. The errors, the command line's client and the docs read this table; which reason an upstream's answer gets is
in `http_errors.py`.
"""

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple, TypeAlias

from bridge.core.errors import Code
from ollmbridge.v1 import error_details_pb2 as pb
from ollmbridge.v1.chat_completion_service_pb2 import DESCRIPTOR

__all__ = [
    "DOMAIN",
    "REASONS",
    "SERVICE_NAME",
    "UPSTREAM_DOMAIN",
    "Party",
    "ReasonRow",
    "find_party",
    "find_reason",
    "list_reasons",
]

SERVICE_NAME: Final = DESCRIPTOR.services_by_name["ChatCompletionService"].full_name
"""The service's name as the protos have it."""

DOMAIN: Final = "ollmbridge"
"""ErrorInfo's domain of what the bridge decided."""
UPSTREAM_DOMAIN: Final = "upstream.ollmbridge"
"""ErrorInfo's domain of what the upstream answered."""


Party: TypeAlias = Literal["caller", "gateway", "bridge"]
"""Who has to act, if anybody."""


class ReasonRow(NamedTuple):
    """What is known of a reason. `code` is None if it depends: on the error's own words, or on what was sent.

    A failure in the middle of a stream is ABORTED in place of UNAVAILABLE, whatever its reason.
    """

    code: Code | None
    domain: str
    advice: str


_UPSTREAM: Final[Mapping[int, tuple[Code | None, str]]] = {
    pb.ERROR_REASON_UPSTREAM_INVALID_REQUEST: (
        Code.INVALID_ARGUMENT,
        "fix the request: the upstream's message says which part is wrong",
    ),
    pb.ERROR_REASON_UPSTREAM_UNAUTHENTICATED: (
        Code.UNAUTHENTICATED,
        "send a valid key as authorization metadata (ollm-bridge chat: OLLM_API_KEY)",
    ),
    pb.ERROR_REASON_UPSTREAM_PAYMENT_REQUIRED: (Code.FAILED_PRECONDITION, "settle the account, then retry"),
    pb.ERROR_REASON_UPSTREAM_PERMISSION_DENIED: (Code.PERMISSION_DENIED, "use a key that may use this model"),
    pb.ERROR_REASON_UPSTREAM_NOT_FOUND: (
        Code.NOT_FOUND,
        "use a model, function or variant that the gateway has",
    ),
    pb.ERROR_REASON_UPSTREAM_CONFLICT: (Code.ABORTED, "decide whether to retry: the call may have run"),
    pb.ERROR_REASON_UPSTREAM_RATE_LIMITED: (Code.RESOURCE_EXHAUSTED, "wait as long as RetryInfo says, then retry"),
    pb.ERROR_REASON_UPSTREAM_PROVIDER_TIMEOUT: (Code.DEADLINE_EXCEEDED, "use a faster model or ask for less"),
    pb.ERROR_REASON_UPSTREAM_PROVIDER_FAILED: (
        Code.UNAVAILABLE,
        "retry with backoff; if it persists, check whether the message reports a fault of the request",
    ),
    pb.ERROR_REASON_UPSTREAM_UNAVAILABLE: (Code.UNAVAILABLE, "retry with backoff"),
    pb.ERROR_REASON_UPSTREAM_INTERNAL: (Code.INTERNAL, "report the request id to the gateway's operators"),
    pb.ERROR_REASON_UPSTREAM_UNIMPLEMENTED: (
        Code.UNIMPLEMENTED,
        "remove from the request what the gateway does not support",
    ),
    pb.ERROR_REASON_UPSTREAM_STREAM_ERROR: (None, "decide whether to retry: the completion is not whole"),
    pb.ERROR_REASON_UPSTREAM_REFUSED: (
        Code.FAILED_PRECONDITION,
        "read the message: the gateway does not accept this request",
    ),
}

_OWN: Final[Mapping[int, tuple[Code | None, str]]] = {
    pb.ERROR_REASON_INVALID_REQUEST: (Code.INVALID_ARGUMENT, "fix the listed fields"),
    pb.ERROR_REASON_UNDECODABLE_REQUEST: (Code.INVALID_ARGUMENT, "generate the client from the current protos"),
    pb.ERROR_REASON_INVALID_METADATA: (Code.INVALID_ARGUMENT, "send less metadata, in printable ASCII only"),
    pb.ERROR_REASON_OVERLOADED: (
        Code.RESOURCE_EXHAUSTED,
        "wait as long as RetryInfo says, then retry; if it persists, add replicas or raise calls_max",
    ),
    pb.ERROR_REASON_DRAINING: (None, "retry on another replica; if the code is ABORTED, the call may have run"),
    pb.ERROR_REASON_CREDENTIALS_REJECTED: (
        Code.INTERNAL,
        "configure a valid key for the bridge: upstream.api_key_file",
    ),
    pb.ERROR_REASON_UPSTREAM_UNREACHABLE: (
        Code.UNAVAILABLE,
        "check upstream.base_url, DNS and the network (ollm-bridge check)",
    ),
    pb.ERROR_REASON_UPSTREAM_DISCONNECTED: (Code.ABORTED, "decide whether to retry: the call may have run"),
    pb.ERROR_REASON_UPSTREAM_TIMEOUT: (Code.DEADLINE_EXCEEDED, "retry, or raise the timeout that the message names"),
    pb.ERROR_REASON_INCOMPLETE_COMPLETION: (Code.ABORTED, "decide whether to retry: the completion is not whole"),
    pb.ERROR_REASON_INVALID_UPSTREAM_RESPONSE: (
        Code.INTERNAL,
        "check that upstream.base_url is a gateway of this API (ollm-bridge check)",
    ),
    pb.ERROR_REASON_UPSTREAM_RESPONSE_TOO_LARGE: (
        Code.INTERNAL,
        "ask for less, or raise upstream.response_bytes_max or upstream.event_bytes_max",
    ),
    pb.ERROR_REASON_BRIDGE_FAULT: (Code.INTERNAL, "report it: the bridge's log has the stack, under the request id"),
    pb.ERROR_REASON_CALLER_UNAUTHENTICATED: (
        Code.UNAUTHENTICATED,
        "send a token from the bridge's tokens_file as authorization metadata, or call through the mesh",
    ),
    pb.ERROR_REASON_CALLER_DENIED: (
        Code.PERMISSION_DENIED,
        "add the caller's identity to tls.allowed_identities (in a mesh: mesh.allowed_identities), or use another one",
    ),
    pb.ERROR_REASON_QUEUE_TOO_LONG: (
        Code.RESOURCE_EXHAUSTED,
        "wait as long as RetryInfo says, then retry; if it persists, set longer deadlines or add replicas",
    ),
}

REASONS: Final[Mapping[int, ReasonRow]] = {
    reason: ReasonRow(code, domain, advice)
    for domain, rows in ((UPSTREAM_DOMAIN, _UPSTREAM), (DOMAIN, _OWN))
    for reason, (code, advice) in rows.items()
}
"""Every reason of the protos, by its number."""


def find_reason(name: str) -> ReasonRow | None:
    """Return the row of a reason by its name in ErrorInfo, or None if this version does not know the name."""
    try:
        return REASONS.get(pb.ErrorReason.Value(f"ERROR_REASON_{name}"))
    except ValueError:
        return None


_CALLERS: Final = frozenset(
    {
        pb.ERROR_REASON_UPSTREAM_INVALID_REQUEST,
        pb.ERROR_REASON_UPSTREAM_UNAUTHENTICATED,
        pb.ERROR_REASON_UPSTREAM_PAYMENT_REQUIRED,
        pb.ERROR_REASON_UPSTREAM_PERMISSION_DENIED,
        pb.ERROR_REASON_UPSTREAM_NOT_FOUND,
        pb.ERROR_REASON_UPSTREAM_CONFLICT,
        pb.ERROR_REASON_UPSTREAM_RATE_LIMITED,
        pb.ERROR_REASON_UPSTREAM_UNIMPLEMENTED,
        pb.ERROR_REASON_UPSTREAM_REFUSED,
        pb.ERROR_REASON_INVALID_REQUEST,
        pb.ERROR_REASON_UNDECODABLE_REQUEST,
        pb.ERROR_REASON_INVALID_METADATA,
        pb.ERROR_REASON_CALLER_UNAUTHENTICATED,
        pb.ERROR_REASON_CALLER_DENIED,
    }
)
_BRIDGES: Final = frozenset(
    {
        pb.ERROR_REASON_OVERLOADED,
        pb.ERROR_REASON_QUEUE_TOO_LONG,
        pb.ERROR_REASON_DRAINING,
        pb.ERROR_REASON_CREDENTIALS_REJECTED,
        pb.ERROR_REASON_BRIDGE_FAULT,
    }
)
_PARTIES: Final[Mapping[str, Party]] = {
    pb.ErrorReason.DESCRIPTOR.values_by_number[reason].name.removeprefix("ERROR_REASON_"): (
        "caller" if reason in _CALLERS else "bridge" if reason in _BRIDGES else "gateway"
    )
    for reason in REASONS
}


def list_reasons() -> list[str]:
    """Return the names of all reasons, as ErrorInfo has them."""
    return list(_PARTIES)


def find_party(reason: str) -> Party:
    """Return who has to act on a failure, by its reason's name. Without a reason the caller has ended the call."""
    return _PARTIES.get(reason, "caller" if not reason else "gateway")
