"""Bytes to server-sent events, by the WHATWG's rules, on bytes.

https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation. The rule here: an event
comes out when its blank line has come in, not before, so a stream cut anywhere yields only events that were whole.
Lines end in LF, CR or CRLF, also if a read falls between the two; a BOM is skipped once; comments and the fields `id`
and `retry` are skipped. Data stays bytes: whether it is UTF-8 is decided where it is parsed.

Each byte is looked at once, however small the reads, and what is pending is bounded.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

__all__ = ["EVENT_BYTES_MAX", "Event", "EventTooLargeError", "SseDecoder"]

EVENT_BYTES_MAX: Final = 16 * 1024 * 1024
"""Bytes of one event, its pending line included. A base64 image in a delta is a few MiB."""

_BOM: Final = b"\xef\xbb\xbf"


class EventTooLargeError(ValueError):
    """An event, or a line of one, is larger than the limit; the text names the limit."""


class Event(NamedTuple):
    """One event: its name ("" if it has none) and its data, lines joined by LF."""

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
        """Yield the events that the bytes complete. Raises EventTooLargeError, after those that came before."""
        if self._start is not None:
            data = self._strip_bom(data)
        if self._after_cr and data:
            self._after_cr = False
            data = data.removeprefix(b"\n")
        if not data:
            return
        lines = data.splitlines()
        end = data[-1:]
        last = None if end in {b"\n", b"\r"} else lines.pop()
        self._after_cr = end == b"\r"
        if self._line and lines:
            lines[0] = bytes(self._line + lines[0])
            self._line = bytearray()
        for line in lines:
            if line:
                self._take(line)
                continue
            name, event_data = self._name, self._data
            self._name, self._data = "", None
            if event_data is not None:
                yield Event(name, bytes(event_data))
        if last is not None:
            self._line += last
            self._check_size(len(self._line))

    def _strip_bom(self, data: bytes) -> bytes:
        start = (self._start or b"") + data
        if len(start) < len(_BOM) and _BOM.startswith(start):
            self._start = start
            return b""
        self._start = None
        return start.removeprefix(_BOM)

    def _take(self, line: bytes) -> None:
        self._check_size(len(line))
        if self._data is None and line[:6] == b"data: ":  # nearly every line
            self._data = line[6:]
            return
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
            raise EventTooLargeError(f"an event of the stream is larger than {self._event_bytes_max} bytes")
