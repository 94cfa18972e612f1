"""The head of an answer out of the bytes of a connection: status and fields, strictly by RFC 9112, within limits.

llhttp (httptools) parses; it bounds nothing and runs on into the body. So a head is cut off at its blank line, and its
bytes are counted. Interim heads (RFC 9110, 15.2) are passed over. What becomes of the bytes depends on the bytes alone,
not on how they were cut.
"""

from collections.abc import Callable
from typing import Final

import httptools

from bridge.upstream.exchange import InvalidAnswerError

__all__ = ["HeadParser", "describe"]

INTERIM_ANSWERS_MAX: Final = 16
"""Answers of 1xx before the final one; their heads count as part of its head."""

_BLANK_LINE: Final = b"\r\n\r\n"
_VERSIONS: Final = frozenset({"1.0", "1.1"})
_SWITCHING: Final = "it switches protocols (HTTP 101), which nobody asked for"


class HeadParser:
    """Feed it until `status` is set; `fields` are then those of the final head, with lower-case names.

    `llhttp` and `found` are what parses the head: they go on with a body in chunks.
    """

    __slots__ = (
        "_bytes_left",
        "_bytes_max",
        "_fields_max",
        "_interim_answers",
        "_tail",
        "found",
        "is_begun",
        "llhttp",
        "status",
        "version",
    )

    def __init__(self, bytes_max: int, fields_max: int) -> None:
        self.status = 0
        self.version = ""
        self._bytes_max = self._bytes_left = bytes_max
        self._fields_max = fields_max
        self._interim_answers = 0
        self._begin()

    @property
    def fields(self) -> list[tuple[bytes, bytes]]:
        """The fields of the head that was parsed last."""
        return self.found.fields

    def feed(self, data: bytes) -> bytes:
        """Parse the next bytes and return those behind the final head. Raises InvalidAnswerError."""
        while data and not self.status:
            data = self._feed_one(data)
        return data

    def _begin(self) -> None:
        self.found = Found()
        self.llhttp = httptools.HttpResponseParser(self.found)
        self.is_begun = False
        self._tail = b""

    def _feed_one(self, data: bytes) -> bytes:
        if not self.is_begun:
            self.is_begun = True
            if data[0] != ord("H"):  # llhttp would take an RTSP answer, and skip blank lines
                raise InvalidAnswerError("it does not begin with HTTP/")
        window = self._tail + data
        end = window.find(_BLANK_LINE)
        is_whole = end >= 0
        size = end + len(_BLANK_LINE) - len(self._tail) if is_whole else len(data)
        self._parse(data[: min(size, self._bytes_left)])
        self._bytes_left -= size
        if self._bytes_left < 0:
            raise self._build_limit_error(f"its head has more than {self._bytes_max} bytes (upstream.head_bytes_max)")
        self._tail = window[1 - len(_BLANK_LINE) :]
        if is_whole:
            self._end()
        return data[size:]

    def _parse(self, data: bytes) -> None:
        try:
            self.llhttp.feed_data(data)
        except httptools.HttpParserUpgrade:
            raise InvalidAnswerError(_SWITCHING) from None
        except httptools.HttpParserInvalidStatusError:
            raise InvalidAnswerError("its status is not a number of three digits") from None
        except httptools.HttpParserError as error:
            if self.llhttp.get_status_code() == 101:
                raise InvalidAnswerError(_SWITCHING) from None
            raise InvalidAnswerError(f"its head {describe(error)}", status=self._status_so_far()) from None

    def _build_limit_error(self, message: str) -> InvalidAnswerError:
        """Return the error of a head above a limit, with the fields so far: a refusal keeps its Retry-After.

        Of a malformed head, which fields llhttp has told depends on the cuts.
        """
        return InvalidAnswerError(message, status=self._status_so_far(), headers=self.fields)

    def _status_so_far(self) -> int | None:
        status = self.llhttp.get_status_code()
        return status if status >= 200 else None

    def _end(self) -> None:
        status = self.llhttp.get_status_code()
        self.version = self.llhttp.get_http_version()
        if self.version not in _VERSIONS:
            raise InvalidAnswerError(f"its version is HTTP/{self.version}, not HTTP/1.1")
        if status < 100:
            raise InvalidAnswerError("its status is below 100")
        if len(self.fields) > self._fields_max:
            raise self._build_limit_error(
                f"its head has more than {self._fields_max} fields (upstream.head_fields_max)"
            )
        if status >= 200:
            self.status = status
            return
        self._interim_answers += 1
        if self._interim_answers > INTERIM_ANSWERS_MAX:
            raise InvalidAnswerError(f"more than {INTERIM_ANSWERS_MAX} interim answers (HTTP 1xx) came before it")
        self._begin()


class Found:
    """What llhttp finds. It does not hold the parser that holds it: an answer must not leave a circle of references."""

    __slots__ = ("fields", "is_complete", "pieces")

    def __init__(self) -> None:
        self.fields: list[tuple[bytes, bytes]] = []
        self.pieces: list[bytes] = []
        self.is_complete = False

    @property
    def on_body(self) -> Callable[[bytes], None]:
        """What llhttp calls with each piece of the content; asked for once."""
        return self.pieces.append

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field, of the head or of the trailers."""
        self.fields.append((name.lower(), value.strip()))

    def on_message_complete(self) -> None:
        """Note the end of the content."""
        self.is_complete = True

    def on_message_begin(self) -> None:
        """Stop at another answer behind this one."""
        if self.is_complete:
            raise _ExcessError


class _ExcessError(Exception):
    """Another answer begins behind the one that is parsed."""


def describe(error: httptools.HttpParserError) -> str:
    """Say what is wrong by llhttp's reason, which is a constant of its own and quotes nothing."""
    reason = str(error)
    is_name = "-" in reason.partition(" ")[0]  # such as Content-Length
    return f"is malformed: {reason if is_name else reason[:1].lower() + reason[1:]}"
