"""What one call sends to the gateway, and what became known of it on the way."""

from dataclasses import dataclass, field

from bridge.core.errors import NOTHING_ASKED, Asked

__all__ = ["UpstreamCall"]


@dataclass(slots=True, eq=False)
class UpstreamCall:
    """One call. `headers` are sent, and `asked` is for errors to name; the rest is filled in.

    `answer_headers` are those of the response, and `returned` is the metadata that they become. `may_be_cut` says that
    only the end of the connection ended the body. Times are on the monotonic clock: when the call has to be over at the
    latest, when the request went out, its first chunk came and its first chunk with output (which the server fills
    in), and the body was over. `waited_s` is how long the call has waited for the gateway.
    """

    headers: list[tuple[str, str]] = field(default_factory=list)
    asked: Asked = NOTHING_ASKED
    streamed: bool = False
    http_status: int | None = None
    content_type: str = ""
    may_be_cut: bool = False
    answer_headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    returned: list[tuple[str, str]] = field(default_factory=list)
    deadline_at: float | None = None
    sent_at: float | None = None
    first_chunk_at: float | None = None
    first_output_at: float | None = None
    ended_at: float | None = None
    waited_s: float = 0.0
