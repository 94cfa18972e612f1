"""Content codings: which one a body has by its header, and what its bytes decode to, a bounded step at a time.

The bridge asks for `identity`, so a coding is a gateway's or a proxy's own idea. A name that means no coding (`none`,
a charset, `aws-chunked`) is identity, as in browsers and curl. gzip and deflate are decoded. Nothing else is: neither
another coding nor two at once. What the failure says, and what is read for it, is up to `body.py`.
"""

import re
import unicodedata
import zlib
from collections.abc import Iterator
from typing import Final

__all__ = ["Inflater", "describe_coding", "find_codings", "is_inflatable", "is_readable"]

_IDENTITY: Final = frozenset(
    {
        *("", "identity", "none", "null", "no", "off", "plain", "raw", "text", "json"),
        *("binary", "7bit", "8bit", "utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1", "latin1"),
        *("aws-chunked", "chunked"),
    }
)
"""Names that servers were seen to send with a plain body, and their kin: none is a coding in IANA's registry."""
_GZIP: Final = frozenset({"gzip", "x-gzip"})
_DEFLATE: Final = "deflate"
_AUTO: Final = zlib.MAX_WBITS | 32  # zlib finds out itself whether the header is its own or gzip's
_RAW: Final = -zlib.MAX_WBITS
_NAME: Final = re.compile(r"[a-z0-9._, -]{1,40}")


def find_codings(header: str) -> list[str]:
    """Return the codings that a Content-Encoding names, in the order in which they were applied."""
    names = [each.partition(";")[0].strip(' \t"').lower() for each in header.split(",")]
    return [name for name in names if name not in _IDENTITY and "/" not in name]  # a media type is none either


def is_inflatable(codings: list[str]) -> bool:
    """Whether an Inflater decodes them."""
    return len(codings) == 1 and (codings[0] in _GZIP or codings[0] == _DEFLATE)


def describe_coding(codings: list[str]) -> str:
    """Name the codings, if they are names."""
    names = ", ".join(codings)
    return f"content-encoding {names if _NAME.fullmatch(names) else 'unknown'}"


def is_readable(data: bytes) -> bool:
    """Whether bytes are the beginning of a text: UTF-8 without control characters, cut anywhere."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":
            return False
        text = data[: error.start].decode()
    return bool(text) and not any(unicodedata.category(char) == "Cc" and char not in "\t\r\n" for char in text)


class Inflater:
    """Decodes gzip, of several members too (RFC 1952, 2.2), or deflate, without zlib's header too, which some omit."""

    __slots__ = ("_has_any_header", "_has_output", "_start", "_stream")

    def __init__(self, coding: str) -> None:
        self._has_any_header = coding != _DEFLATE
        self._has_output = False
        self._start = b""
        self._stream: zlib._Decompress | None = None

    @property
    def is_cut_off(self) -> bool:
        """Whether bytes came, and ended before any of what they decode to."""
        is_ended = self._stream is not None and self._stream.eof
        return bool(self._start) and not self._has_output and not is_ended

    def inflate(self, data: bytes, step_bytes: int) -> Iterator[bytes]:
        """Yield what the next bytes decode to, at most `step_bytes` at a time; some parts are empty.

        A step is decoded when it is asked for. Raises zlib.error, also for what is no member after the last one.
        """
        stream = self._stream
        if stream is None:
            data = self._start = self._start + data
            if len(data) < 2:
                return
            has_header = self._has_any_header or _has_zlib_header(data)
            self._stream = stream = zlib.decompressobj(_AUTO if has_header else _RAW)
        while data:
            if stream.eof:
                self._stream = stream = zlib.decompressobj(_AUTO)
            part = stream.decompress(data, step_bytes)
            self._has_output = self._has_output or bool(part)
            yield part
            data = stream.unconsumed_tail or stream.unused_data


def _has_zlib_header(data: bytes) -> bool:
    """Whether two bytes begin zlib's format (RFC 1950, 2.2), or gzip's, which some servers call deflate."""
    return data.startswith(b"\x1f\x8b") or (data[0] & 0x0F == 8 and (data[0] << 8 | data[1]) % 31 == 0)
