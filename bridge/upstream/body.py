"""The body of an answer: undoes the content encoding, bounds each silence, and says why it broke off if it did.

Iterating over a body raises nothing: what came counts, so it is yielded, and then `failure` is set. The time that the
reader takes between two pieces is no silence.
"""

import contextlib
import re
import time
import zlib
from collections.abc import Iterator
from typing import Final, Self

from bridge.core.errors import BridgeError
from bridge.settings import UpstreamSettings
from bridge.upstream.call import UpstreamCall
from bridge.upstream.exchange import Answer, EngineError
from bridge.upstream.failures import Wait, invalid_body_error, to_bridge_error

__all__ = ["EventBody", "header_text"]

DECODED_BYTES_MAX: Final = 64 * 1024
"""Of what is decoded, the largest piece: 200 MB of zeros travel in 204 KB of gzip."""
_LINGER_S: Final = 0.02
"""How long a body whose completion is whole is read on for its end, so that its connection can serve the next call."""
_PLAIN: Final = frozenset({"", "identity", "none", "binary", "utf-8"})
_DEFLATED: Final = frozenset({"gzip", "x-gzip", "deflate"})
_AUTO: Final = zlib.MAX_WBITS | 32  # zlib finds out itself whether the header is its own or gzip's
_RAW: Final = -zlib.MAX_WBITS


class EventBody:
    """An async iterator over the decoded bytes of an answer. `failure` is set if they ended before the body did."""

    __slots__ = ("_answer", "_call", "_decoded", "_first", "_idle", "_inflater", "_wait", "failure")

    def __init__(self, answer: Answer, call: UpstreamCall, settings: UpstreamSettings) -> None:
        self._answer = answer
        self._call = call
        self._idle = self._wait = Wait("data", settings.idle_timeout_s, "upstream.idle_timeout_s")
        first_s = settings.first_chunk_timeout_s if call.streamed else None
        self._first = None if first_s is None else Wait("first chunk", first_s, "upstream.first_chunk_timeout_s")
        self._inflater: _Inflater | None = None
        self._decoded: Iterator[bytes] = iter(())
        self.failure: BridgeError | None = None
        codings = _codings(header_text(answer, b"content-encoding"))
        if codings:
            self._begin_decoding(codings)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while self.failure is None:
            try:
                for part in self._decoded:
                    if part:
                        return part
                data = self._answer.read_nowait() or await self._answer.read(self._timeout_s())
                if not data:
                    break
                if self._inflater is None:
                    return data
                self._decoded = self._inflater.inflate(data)
            except EngineError as error:
                self.failure = to_bridge_error(error, self._call, self._wait)
            except zlib.error as error:
                message = f"the gateway's body can't be decoded: {self._describe_coding()}: {error}"
                self.failure = invalid_body_error(message, self._call, error)
        raise StopAsyncIteration

    async def read_to_end(self) -> None:
        """Read on for a moment, and drop what comes."""
        until = time.monotonic() + _LINGER_S
        with contextlib.suppress(EngineError):
            while (left_s := until - time.monotonic()) > 0 and await self._answer.read(left_s):
                pass

    def _timeout_s(self) -> float:
        """Return how long the wait that begins may last, and note which limit says so."""
        sent_at = self._call.sent_at
        if self._first is not None and self._call.first_chunk_at is None and sent_at is not None:
            left_s = max(sent_at + self._first.limit_s - time.monotonic(), 0.0)
            if left_s < self._idle.limit_s:
                self._wait = self._first
                return left_s
        self._wait = self._idle
        return self._idle.limit_s

    def _begin_decoding(self, codings: list[str]) -> None:
        if len(codings) == 1 and codings[0] in _DEFLATED:
            self._inflater = _Inflater(is_deflate=codings[0] == "deflate")
            return
        message = f"the gateway's body can't be decoded: {self._describe_coding()}"
        self.failure = invalid_body_error(message, self._call)

    def _describe_coding(self) -> str:
        """Name the content encoding, if it is a name, and the size."""
        coding = header_text(self._answer, b"content-encoding").strip().lower()
        size = header_text(self._answer, b"content-length")
        what = coding if re.fullmatch(r"[a-z0-9._, -]{1,40}", coding) else "unknown"
        return f"content-encoding {what}" + (f", {size} bytes" if size else "")


def header_text(answer: Answer, name: bytes) -> str:
    """Return the values of a header, joined if there are several."""
    return ", ".join([value.decode("latin-1") for each, value in answer.headers if each == name])


def _codings(text: str) -> list[str]:
    """Return the content encodings that are some."""
    return [name for each in text.split(",") if (name := each.strip().lower()) not in _PLAIN]


class _Inflater:
    """Undoes gzip, of several members too (RFC 1952, 2.2), or deflate, without zlib's header too, which some omit."""

    __slots__ = ("_is_deflate", "_start", "_stream")

    def __init__(self, *, is_deflate: bool) -> None:
        self._is_deflate = is_deflate
        self._start = b""
        self._stream: zlib._Decompress | None = None

    def inflate(self, data: bytes) -> Iterator[bytes]:
        """Yield what the next bytes decode to. Raises zlib.error, also for what is no member after the last one."""
        stream = self._stream
        if stream is None:
            data = self._start = self._start + data
            if len(data) < 2:
                return
            has_header = not self._is_deflate or _has_zlib_header(data)
            self._stream = stream = zlib.decompressobj(_AUTO if has_header else _RAW)
        while data:
            if stream.eof:
                self._stream = stream = zlib.decompressobj(_AUTO)
            yield stream.decompress(data, DECODED_BYTES_MAX)
            data = stream.unconsumed_tail or stream.unused_data


def _has_zlib_header(data: bytes) -> bool:
    """Whether two bytes begin zlib's format (RFC 1950, 2.2), or gzip's, which some servers call deflate."""
    return data.startswith(b"\x1f\x8b") or (data[0] & 0x0F == 8 and (data[0] << 8 | data[1]) % 31 == 0)
