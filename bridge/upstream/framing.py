"""One answer out of the bytes of a connection: HTTP/1.1 as RFC 9112 has it, strictly, without I/O.

The head says how the body is framed: by a length, by chunks, or by the connection's end. llhttp (httptools) parses the
chunks; a body of known length is cut off here, and so is the rest of a segment in which an answer ends, since llhttp
neither bounds what stands between chunks nor says where an answer ended.

The rule: what becomes of the bytes depends on the bytes alone, not on how TCP cut them. What came before a broken byte
counts. What comes after the answer's end is excess: it spoils the connection, but not the answer.
"""

import re
from enum import Enum, auto
from typing import Final

import httptools

from bridge.upstream.exchange import ConnectionLostError, EngineError, InvalidAnswerError
from bridge.upstream.heads import HeadParser, describe

__all__ = ["AnswerParser"]

FRAMING_BYTES_MAX: Final = 16 * 1024
"""Bytes of a chunked body in a row without content: a chunk's extensions, or the trailers.

They are counted in blocks of this size from the body's start, since a count from segment to segment would depend on
their sizes: less than one block always passes, two never do."""

_FRAMING_FIELDS: Final = frozenset({b"connection", b"content-length", b"transfer-encoding"})
_BODILESS: Final = frozenset({204, 304})
_CHUNKED_END: Final = re.compile(rb"[^\r\n]\r\n\r\n")


class _Framing(Enum):
    LENGTH = auto()
    CHUNKED = auto()
    CONNECTION_END = auto()


class AnswerParser:
    """One answer while it comes: feed it what the connection brings, then look at its attributes.

    `status` is 0 until the final head is whole. `pieces` are the body's bytes that nobody has taken yet, `held_bytes`
    their size. `is_complete` says that the body is whole, `failure` that it never will be. `is_reusable` says that the
    connection may serve another request: both sides want to, and nothing has come after the answer.
    """

    __slots__ = (
        "_block_content",
        "_block_left",
        "_framing",
        "_head",
        "_left",
        "_tail",
        "failure",
        "headers",
        "held_bytes",
        "is_complete",
        "is_reusable",
        "pieces",
        "status",
    )

    def __init__(self, *, head_bytes_max: int, head_fields_max: int) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.pieces: list[bytes] = []
        self.held_bytes = 0
        self.is_complete = False
        self.is_reusable = False
        self.failure: EngineError | None = None
        self._head = HeadParser(head_bytes_max, head_fields_max)

    @property
    def ends_with_connection(self) -> bool:
        """Whether the body is framed by the connection's end alone; known once there is a status."""
        return self._framing is _Framing.CONNECTION_END

    def feed(self, data: bytes) -> None:
        """Parse the next bytes of the connection; after a failure they mean nothing."""
        if self.failure is not None:
            return
        try:
            if not self.status:
                data = self._head.feed(data)
                if self._head.status:
                    self._begin_body()
            if data:
                self._feed_body(data)
        except InvalidAnswerError as error:
            error.status = error.status or self.status or None
            self.fail(error)

    def feed_end(self) -> None:
        """Note that the peer has ended the connection in order, which ends a body without a length."""
        if self.status and self._framing is _Framing.CONNECTION_END and self.failure is None:
            self.is_complete = True
        else:
            self.fail_as_lost()

    def fail_as_lost(self, cause: str = "") -> None:
        """Note that the connection has ended otherwise, unless the answer was over by then."""
        if self.is_complete or self.failure is not None:
            return
        where = "in the body of the answer" if self.status else "in the head of the answer"
        where = where if self.status or self._head.is_begun else "before the answer"
        self.fail(ConnectionLostError(f"it ended {where}" + (f" ({cause})" if cause else "")))

    def fail(self, failure: EngineError) -> None:
        """Note that the answer will not be complete; pieces that have come can still be taken."""
        self.failure = failure
        self.is_reusable = False

    def take(self) -> bytes:
        """Return the bytes of the body that have come since the last time."""
        pieces = self.pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self.held_bytes = 0
        return data

    def _begin_body(self) -> None:
        """Find out how the body is framed (RFC 9112, 6.3), and whether the connection is kept (9.3)."""
        head = self._head
        length = None
        codings = []
        options: list[bytes] = []
        for name, value in head.fields:
            if name not in _FRAMING_FIELDS:
                continue
            if name == b"content-length":
                length = int(value)
            elif name == b"transfer-encoding":
                codings.append(value.lower())
            else:
                options += [option.strip() for option in value.lower().split(b",")]
        is_old = head.version == "1.0"
        if codings and (is_old or codings != [b"chunked"]):
            raise InvalidAnswerError("its Transfer-Encoding is not chunked, or not of HTTP/1.1", status=head.status)
        self.status, self.headers, self.pieces = head.status, head.fields, head.found.pieces
        self.is_reusable = b"close" not in options and (not is_old or b"keep-alive" in options)
        if head.status in _BODILESS:
            length, codings = 0, []
        if codings:
            self._begin_chunks()
            return
        self._framing = _Framing.CONNECTION_END if length is None else _Framing.LENGTH
        self._left = length or 0
        self.is_complete = length == 0
        self.is_reusable = self.is_reusable and length is not None

    def _feed_body(self, data: bytes) -> None:
        if self.is_complete:
            self.is_reusable = False
        elif self._framing is _Framing.CHUNKED:
            self._feed_chunks(data)
        elif self._framing is _Framing.CONNECTION_END:
            self._add(data)
        else:
            self._feed_counted(data)

    def _feed_counted(self, data: bytes) -> None:
        self._add(data[: self._left])
        self._left -= len(data)
        if self._left <= 0:
            self.is_complete = True
            self.is_reusable = self.is_reusable and self._left == 0

    def _add(self, piece: bytes) -> None:
        self.pieces.append(piece)
        self.held_bytes += len(piece)

    # Chunks

    def _begin_chunks(self) -> None:
        self._framing = _Framing.CHUNKED
        self._head.llhttp.set_dangerous_leniencies(lenient_spaces_after_chunk_size=True)  # old servers pad sizes
        self._head.found.fields = []  # the trailers, which are dropped
        self._tail = b""
        self._block_left = FRAMING_BYTES_MAX
        self._block_content = 0

    def _feed_chunks(self, data: bytes) -> None:
        while len(data) >= self._block_left and not self.is_complete:
            block, data = data[: self._block_left], data[self._block_left :]
            self._parse_chunks(block)
            if not self._block_content and not self.is_complete:
                raise InvalidAnswerError(f"it has {FRAMING_BYTES_MAX} bytes of chunk extensions or trailers in a row")
            self._block_left = FRAMING_BYTES_MAX
            self._block_content = 0
        self._block_left -= len(data)
        if self.is_complete:
            self.is_reusable = self.is_reusable and not data
        elif data:
            self._parse_chunks(data)

    def _parse_chunks(self, data: bytes) -> None:
        found, pieces, before = self._head.found, self.pieces, len(self.pieces)
        try:
            self._head.llhttp.feed_data(data)
        except httptools.HttpParserError as error:
            if not found.is_complete:
                raise InvalidAnswerError(f"its chunked body {describe(error)}") from None
            self.is_reusable = False
        finally:
            size = sum(map(len, pieces[before:]))
            self.held_bytes += size
            self._block_content += size
        self._tail = data[-5:] if len(data) >= 5 else (self._tail + data)[-5:]
        if found.is_complete:
            self.is_complete = True  # llhttp skips line breaks after it
            self.is_reusable = self.is_reusable and _CHUNKED_END.fullmatch(self._tail) is not None
