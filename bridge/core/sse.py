"""Bytes to server-sent events, by the WHATWG's rules, on bytes.

https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation. The rule here: an event is
given out when its blank line has come, not before, so a stream cut anywhere gives only events that were whole. Lines
end in LF, CR or CRLF, also where a read falls between the two; a BOM is skipped once; comments and the fields `id` and
`retry` are read over. Data stays bytes: whether it is UTF-8 is for whoever parses it.

Each byte is looked at once, however small the reads, and what is pending is bounded.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

__all__ = ["EVENT_BYTES_MAX", "Event", "EventTooLargeError", "SseDecoder"]

EVENT_BYTES_MAX: Final = 16 * 1024 * 1024
"""Bytes of one event, its pending line included. A base64 image in a delta is a few MiB."""

_BOM: Final = b"\xef\xbb\xbf"


class EventTooLargeError(ValueError):
    """An event, or a line of one, is larger than the limit; the text gives the limit."""


class Event(NamedTuple):
    """One event: its name ("" where none was given) and its data, lines joined by LF."""

    name: str
    data: bytes


class SseDecoder:
    """A stream's decoder: `feed` bytes as they come. What is pending at the end was never whole, and is dropped."""

    def __init__(self, *, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._event_bytes_max = event_bytes_max
        self._start: bytes | None = b""  # the first bytes, until it is known whether they are a BOM
        self._line = bytearray()  # a line whose end has not come
        self._data: bytes | bytearray | None = None
        self._name = ""
        self._after_cr = False

    def feed(self, data: bytes) -> Iterator[Event]:
        """Give the events that the bytes complete. Raises EventTooLargeError, after those that came before."""
        if self._start is not None:
            data = self._without_bom(data)
        if self._after_cr and data:
            self._after_cr = False
            data = data.removeprefix(b"\n")
        if not data:
            return
        lines = data.splitlines()
        last = None if data[-1:] in {b"\n", b"\r"} else lines.pop()
        self._after_cr = data[-1:] == b"\r"
        for line in lines:
            whole = line
            if self._line:
                whole = bytes(self._line + line)
                self._line = bytearray()
            if whole:
                self._check_size(len(whole))
                self._take(whole)
            elif (event := self._dispatched()) is not None:
                yield event
        if last is not None:
            self._line += last
            self._check_size(len(self._line))

    def _without_bom(self, data: bytes) -> bytes:
        start = (self._start or b"") + data
        if len(start) < len(_BOM) and _BOM.startswith(start):
            self._start = start
            return b""
        self._start = None
        return start.removeprefix(_BOM)

    def _take(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            if self._data is None:
                self._data = value
            else:
                self._data = self._data if isinstance(self._data, bytearray) else bytearray(self._data)
                self._data += b"\n" + value
        elif name == b"event":
            self._name = value.decode("utf-8", "replace")

    def _check_size(self, line_bytes: int) -> None:
        # The same for a whole line as for one that is pending, so that it does not matter where the reads fall.
        if line_bytes + len(self._data or b"") > self._event_bytes_max:
            raise EventTooLargeError(f"expected events of at most {self._event_bytes_max} bytes, found a larger one")

    def _dispatched(self) -> Event | None:
        name, data = self._name, self._data
        self._name, self._data = "", None
        return None if data is None else Event(name, bytes(data))
