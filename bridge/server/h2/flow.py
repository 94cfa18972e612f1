"""Flow-control windows (RFC 9113, 5.2 and 6.9): how many bytes may still be sent, each way."""

from typing import Final

__all__ = ["INITIAL", "WINDOW_MAX", "ReceiveWindow", "SendWindow"]

INITIAL: Final = 65_535
"""A window's size before anybody says another; ours for streams stays there, so that no peer can have exceeded it."""
WINDOW_MAX: Final = 0x7FFF_FFFF


class SendWindow:
    """What the peer lets us send. It may be negative, after the peer has made its initial window smaller."""

    __slots__ = ("size",)

    def __init__(self, size: int = INITIAL) -> None:
        self.size = size

    def widen(self, increment: int) -> bool:
        """Let more be sent, or less; return False if the window is now larger than the rules allow."""
        self.size += increment
        return self.size <= WINDOW_MAX


class ReceiveWindow:
    """What we let the peer send. It opens only when asked, by what is lacking."""

    __slots__ = ("size",)

    def __init__(self, size: int = INITIAL) -> None:
        self.size = size

    def take(self, count: int) -> bool:
        """Count bytes that came; return False if there was no room for them."""
        self.size -= count
        return self.size >= 0

    def open_to(self, size: int) -> int:
        """Return the increment that opens the window to this size, 0 if it is as wide already."""
        increment = max(0, min(size, WINDOW_MAX) - self.size)
        self.size += increment
        return increment
