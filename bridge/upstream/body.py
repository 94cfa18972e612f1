"""The body of an answer: undoes the content coding, bounds each wait, and says why it broke off if it did.

Iterating over a body raises nothing: what came counts, so it is yielded, and then `failure` is set. The time that the
reader takes between two pieces counts for no timeout. A read of many bytes, or of few that decode to many, is yielded
in parts, with a turn of the loop for the other calls before each.
"""

import asyncio
import contextlib
import time
import zlib
from collections.abc import Iterator
from typing import Final, Self

from bridge.core.errors import BridgeError
from bridge.settings import UpstreamSettings
from bridge.upstream.call import UpstreamCall
from bridge.upstream.coding import Inflater, describe_coding, find_codings, is_inflatable
from bridge.upstream.exchange import Answer, EngineError, ReadTimeoutError
from bridge.upstream.failures import to_bridge_error, undecodable_error
from bridge.upstream.waits import Waits

__all__ = ["EventBody", "header_text"]

PART_BYTES_MAX: Final = 16 * 1024
"""Of a stream, or of what is decoded, the largest part: 16 KiB may have 1,800 events, and 200 MB of zeros travel in
204 KB of gzip."""
RAW_BYTES_MAX: Final = 64 * 1024
"""Of a body that can't be decoded, what is read of a refusal: it may be plain, and its envelope picks the row."""
EXCERPT_BYTES: Final = 2048
"""The same of an answer of 2xx, for its excerpt."""
_LINGER_S: Final = 0.02
"""How long a body whose completion is whole is read on for its end, so that its connection can serve the next call."""


class EventBody:
    """An async iterator over the decoded bytes of an answer. `failure` is set if they ended before the body did.

    `has_ended` says that they ended with the body; without both, the time that the reader gave its end was over.
    `raw_start` is then the start of the body as it came, if it is the coding that failed. `waits` are the limits of its
    waits, which the reader tells what it found.
    """

    __slots__ = (
        "_answer",
        "_call",
        "_codings",
        "_inflater",
        "_is_stream",
        "_parts",
        "_raw",
        "failure",
        "has_ended",
        "raw_start",
        "waits",
    )

    def __init__(
        self, answer: Answer, call: UpstreamCall, settings: UpstreamSettings, *, is_stream: bool = False
    ) -> None:
        self._answer = answer
        self._call = call
        self._is_stream = is_stream
        self.waits = Waits(settings, call, is_stream=is_stream)
        self._codings = find_codings(header_text(answer, b"content-encoding"))
        self._inflater = Inflater(self._codings[0]) if is_inflatable(self._codings) else None
        self._raw = b""  # of an encoded body, its start
        self._parts: Iterator[bytes] | None = None
        self.failure: BridgeError | None = None
        self.has_ended = False
        self.raw_start: bytes | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while self.failure is None and not self.waits.is_over():
            try:
                if self._parts is not None:
                    if part := next(self._parts, b""):
                        await asyncio.sleep(0)
                        return part
                    self._parts = None
                data = await self._read()
                if not data:
                    if self._inflater is not None and self._inflater.is_cut_off:
                        await self._fail_to_decode(zlib.error("it ends before its first byte"))
                    self.has_ended = self.failure is None
                    break
                if self._codings:
                    self._parts = self._decode(data)
                elif len(data) > PART_BYTES_MAX and self._is_stream:
                    self._parts = _split(data)
                else:
                    return data
            except EngineError as error:
                if self.waits.is_end_due and isinstance(error, ReadTimeoutError):
                    break
                self.failure = to_bridge_error(error, self._call, self.waits.current)
            except zlib.error as error:
                await self._fail_to_decode(error)
        raise StopAsyncIteration

    async def read_to_end(self) -> None:
        """Read on for a moment, and drop what comes."""
        until = time.monotonic() + _LINGER_S
        with contextlib.suppress(EngineError):
            while (left_s := until - time.monotonic()) > 0 and await self._answer.read(left_s):
                pass

    async def _read(self) -> bytes:
        """Return what has come, and wait for some if nothing has; `b""` at the end. Raises EngineError."""
        if data := self._answer.read_nowait():
            return data
        started_at = time.monotonic()
        try:
            return await self._answer.read(self.waits.begin(started_at))
        finally:
            self._call.waited_s += time.monotonic() - started_at

    def _decode(self, data: bytes) -> Iterator[bytes]:
        """Yield what the next bytes decode to. Raises zlib.error."""
        self._raw += data[: RAW_BYTES_MAX - len(self._raw)]
        if self._inflater is None:
            raise zlib.error("")
        for part in self._inflater.inflate(data, PART_BYTES_MAX):
            if part:
                yield part

    async def _fail_to_decode(self, cause: zlib.error) -> None:
        """Set the failure, with the start of the body as it came."""
        is_refusal = not 200 <= self._answer.status < 300
        size = RAW_BYTES_MAX if is_refusal else EXCERPT_BYTES
        is_whole = False
        with contextlib.suppress(EngineError):
            while len(self._raw) <= size and not is_whole:
                data = await self._read()
                self._raw += data
                is_whole = not data
        self.raw_start = self._raw[:size]
        length = header_text(self._answer, b"content-length")
        length = length if length.isdecimal() else str(len(self._raw)) if is_whole else f"more than {size}"
        what = f"{describe_coding(self._codings)}, {length} bytes"
        self.failure = undecodable_error(f"{what}: {cause}" if cause.args[0] else what, self.raw_start, self._call)
        self.failure.__cause__ = cause


def header_text(answer: Answer, name: bytes) -> str:
    """Return the values of a header, joined if there are several."""
    return ", ".join([value.decode("latin-1") for each, value in answer.headers if each == name])


def _split(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), PART_BYTES_MAX):
        yield data[start : start + PART_BYTES_MAX]
