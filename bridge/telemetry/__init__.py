"""What one call was, as one value, and who is told of it.

The boundary makes one CallRecord a call, at its end; logs, metrics and traces are each an Observer of their own module.
"""

from dataclasses import dataclass
from typing import Protocol

__all__ = ["CallRecord", "Observer"]


@dataclass(frozen=True)
class CallRecord:
    """One call, after its end. Never content, never a key. Times are in seconds, sizes in bytes.

    `reason` is "" for OK, and where the caller ended the call. What did not come is None.
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
    fault: BaseException | None = None
    """A fault of the bridge itself: its type and stack are logged, its text is not."""


class Observer(Protocol):
    """Somebody who is told of every call."""

    def ended(self, record: CallRecord) -> None:
        """Take note of a call. Must not wait, nor raise."""
        ...
