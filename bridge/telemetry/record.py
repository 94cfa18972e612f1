"""One call as a value, and the interface of those that are notified of calls.

A record has no content and no key. Its fields are the log's fields, in this order.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

__all__ = ["NOT_FAILURES", "CallRecord", "Observer"]

NOT_FAILURES: Final = frozenset({"OK", "CANCELLED"})
"""Codes that are no failure: a caller that cancels its call has what it wants."""


class CallRecord(NamedTuple):
    """One call, after its end. Times are in seconds, sizes in bytes.

    `reason` is "" for OK, and if the caller ended the call. What did not come is None. `first_chunk_s` and
    `first_token_s` count from the moment the request was sent, to the first chunk of any kind and to the first with
    output of the model; `translation_s` is the time spent between protobuf and JSON. `cached_tokens` are some of the
    prompt's, `reasoning_tokens` some of the completion's. `trace_id` is "" without a trace, `caller` is "" if callers
    are not identified.
    """

    method: str
    code: str
    reason: str
    model: str
    request_id: str
    peer: str
    duration_s: float
    upstream_status: int | None
    upstream_s: float | None
    first_chunk_s: float | None
    chunks: int
    prompt_tokens: int | None
    completion_tokens: int | None
    request_bytes: int
    response_bytes: int
    translation_s: float | None = None
    trace_id: str = ""
    caller: str = ""
    first_token_s: float | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    cache_write_tokens: int | None = None
    detail: str = ""
    """The bridge's own words on a failure that is not the caller's, or on a refused caller."""
    fault: BaseException | None = None
    """An internal error of the bridge: its type and stack are logged, its text is not."""

    @property
    def streamed(self) -> bool:
        """Whether the call is a stream."""
        return self.method == "StreamChatCompletion"

    @property
    def error(self) -> str:
        """The kind of error: the reason, or the code if the caller ended the call; "" for OK."""
        return "" if self.code == "OK" else self.reason or self.code

    @property
    def stream_end(self) -> str:
        """How a stream ended: `whole`, or the kind of error."""
        return self.error or "whole"


class Observer:
    """The base of what is notified of every call: override what you need. No method may wait or raise."""

    def start(self, method: str) -> None:
        """Handle the arrival of a call."""

    def add_chunks(self, method: str, gaps_s: Sequence[float]) -> None:
        """Handle chunks of one stream after its first: the time of each since the one before."""

    def add_lag(self, lag_s: float) -> None:
        """Handle how late a timer of the event loop was."""

    def refuse(self, method: str, caller: str | None = None) -> None:
        """Handle a call that was refused as OVERLOADED before it ran; it has no start nor end.

        `caller` is the name of its caller, as in CallRecord; None if nobody has looked who makes it.
        """

    def end_connection(self, reason: str) -> None:
        """Handle the end of a connection for what its caller did: a word for the kind of misuse."""

    def end(self, record: CallRecord) -> None:
        """Handle the end of a call."""
