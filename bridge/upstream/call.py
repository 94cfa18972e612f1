"""What one call sends to the gateway, and what became known of it on the way."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from bridge.core.errors import Resource
from ollmbridge.v1.chat_pb2 import Usage

__all__ = ["UpstreamCall"]


@dataclass(slots=True, eq=False)
class UpstreamCall:
    """One call. `headers` are sent; the rest is filled in.

    `returned` is the metadata that the response's headers become. Times are on the monotonic clock: when the request
    went out, its first chunk came (which the server fills in) and the body was over.
    """

    headers: list[tuple[str, str]]
    resource: Resource | None = None
    streamed: bool = False
    http_status: int | None = None
    content_type: str = ""
    returned: list[tuple[str, str]] = field(default_factory=list)
    sent_at: float | None = None
    first_chunk_at: float | None = None
    ended_at: float | None = None
    # Not of the upstream; the server has them here until it has an object of its own for a call.
    tags: Mapping[str, str] = field(default_factory=dict)
    chunks: int = 0
    usage: Usage | None = None
    translation_s: float = 0.0
