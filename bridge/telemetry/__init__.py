"""What one call was, as one value, and who is told of it.

The boundary makes one CallRecord a call, at its end. Logs, metrics and the list of failures are each an Observer of a
module of their own. A trace must be there from the call's start, since the upstream is sent its context: so it is no
observer, but is asked for by `Tracing` and told of the call's steps.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, Protocol

__all__ = ["CallRecord", "Observer", "Trace", "Tracing", "trace_id_of"]

_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


class CallRecord(NamedTuple):
    """One call, after its end. Never content, never a key. Times are in seconds, sizes in bytes.

    `reason` is "" for OK, and where the caller ended the call. What did not come is None. `first_chunk_s` counts from
    the request's going out; `translation_s` is the time spent between protobuf and JSON. `trace_id` is "" where there
    is no trace, `caller` where nothing says who called.
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
    streamed: bool = False
    translation_s: float | None = None
    trace_id: str = ""
    caller: str = ""
    fault: BaseException | None = None
    """A fault of the bridge itself: its type and stack are logged, its text is not."""

    @property
    def stream_end(self) -> str:
        """How a stream ended: `whole`, else by the reason, else by the code where the caller ended it."""
        return "whole" if self.code == "OK" else self.reason or self.code


class Observer:
    """Somebody who is told of every call; one overrides what it wants to hear. None of these may wait, nor raise."""

    def began(self, method: str) -> None:
        """Take note that a call came."""

    def chunks(self, method: str, gaps_s: Sequence[float]) -> None:
        """Take note of chunks of one stream, those after the first: of the time of each since the one before."""

    def ended(self, record: CallRecord) -> None:
        """Take note of a call, at its end."""


class Trace(Protocol):
    """One call's spans while it goes on. None of these may wait, nor raise."""

    @property
    def trace_id(self) -> str:
        """The id, 32 hexadecimal digits."""
        ...

    def headers(self) -> list[tuple[str, str]]:
        """Give the `traceparent`, and `tracestate` if any, that the upstream is sent in place of the caller's.

        To be asked for just before the request goes out: the span of the upstream's part begins with it.
        """
        ...

    def first_chunk(self) -> None:
        """Take note that a stream's first chunk has come."""
        ...

    def end(self, record: CallRecord) -> None:
        """Take note of the call's end. Without it nothing is sent."""
        ...


class Tracing(Protocol):
    """Where traces are begun."""

    def start(self, method: str, metadata: Iterable[tuple[str, str | bytes]], model: str = "") -> Trace | None:
        """Begin the call's trace, or go on with the caller's; None where there is to be none."""
        ...


def trace_id_of(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Give the trace id that a caller sent as `traceparent`; "" where it sent none, or a wrong one.

    https://www.w3.org/TR/trace-context/#traceparent-header
    """
    for key, value in metadata:
        if key == "traceparent" and isinstance(value, str) and (match := _TRACEPARENT.fullmatch(value)):
            return match[1]
    return ""
