"""Bytes to server-sent events, by the WHATWG's rules, on bytes.

https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation. The rule here: an event
comes out when its blank line has come in, not before, so a stream cut anywhere yields only events that were whole.
Lines end in LF, CR or CRLF, also if a read falls between the two; a BOM is skipped once; comments and the fields `id`
and `retry` are skipped. Data stays bytes: whether it is UTF-8 is decided where it is parsed.

Two things go beyond the standard. A field `error` whose value begins as JSON does is an event named `error`, since
llama.cpp reports its errors so. And lines of no known field are kept, as far as they fit into STRAY_BYTES_MAX: they are
what a server or a proxy says that writes no event stream, though it announced one.

Each byte is looked at once, however small the reads, and what is pending is bounded.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

__all__ = ["EVENT_BYTES_MAX", "STRAY_BYTES_MAX", "Event", "EventTooLargeError", "SseDecoder"]

EVENT_BYTES_MAX: Final = 16 * 1024 * 1024
"""Bytes of one event, its pending line included. A base64 image in a delta is a few MiB."""
STRAY_BYTES_MAX: Final = 16 * 1024
"""Of lines that are no part of an event stream, what is kept."""

_BOM: Final = b"\xef\xbb\xbf"
_SKIPPED: Final = frozenset({b"", b"id", b"retry"})
"""Comments, and fields that mean nothing here."""
_FIELDS: Final = _SKIPPED | {b"data", b"event", b"error"}


class EventTooLargeError(ValueError):
    """An event, or a line of one, is larger than the limit; the text names the limit."""


class Event(NamedTuple):
    """One event: its name ("" if it has none) and its data, lines joined by LF."""

    name: str
    data: bytes


class SseDecoder:
    """A stream's decoder: `feed` bytes as they come, and take what is pending at the `end` if the body is whole."""

    def __init__(self, *, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._event_bytes_max = event_bytes_max
        self._start: bytes | None = b""  # the first bytes, until it is known whether they are a BOM
        self._line = bytearray()  # a line whose end has not come
        self._data: bytes | bytearray | None = None
        self._name = ""
        self._error: bytes | None = None  # the value of a field `error`
        self._after_cr = False
        self._stray = bytearray()

    @property
    def pending_bytes(self) -> int:
        """How much has come of an event that is not whole."""
        return len(self._line) + len(self._data or b"")

    @property
    def is_within_event(self) -> bool:
        """Whether what came last is a line without its end, or an event without its blank line."""
        return bool(self._line or self._name or self._start) or self._data is not None or self._error is not None

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
            if self._error is not None:
                error, self._error = self._error, None
                yield Event("error", error)
        if last is not None:
            self._line += last
            self._check_size(len(self._line))

    def end(self) -> Iterator[Event]:
        """Yield the events that lack no more than their line's end and blank line. Raises EventTooLargeError."""
        yield from self.feed(b"\n\n")

    def read_stray(self) -> bytes:
        """Return what has come outside of any field, a last line without its end included."""
        line = bytes(self._line)
        is_field = line.partition(b":")[0] in _FIELDS or any(field.startswith(line) for field in _FIELDS)
        return bytes(self._stray) + (b"" if is_field else line[:STRAY_BYTES_MAX])

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
        elif name == b"error" and value[:1] in {b"{", b"[", b'"'}:
            self._error = value
        elif name not in _SKIPPED:
            self._keep_stray(line)

    def _keep_stray(self, line: bytes) -> None:
        if (left := STRAY_BYTES_MAX - len(self._stray)) > 0:
            self._stray += line[:left] + b"\n"

    def _check_size(self, line_bytes: int) -> None:
        # The same for a whole line as for one that is pending, so that it does not matter where the reads fall.
        if line_bytes + len(self._data or b"") > self._event_bytes_max:
            raise EventTooLargeError(f"an event of the stream is larger than {self._event_bytes_max} bytes")
