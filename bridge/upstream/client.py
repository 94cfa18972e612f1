"""The HTTP client: a pool, the time a call may take, and one table from what can go wrong to BridgeError.

It asks by the engine, yields bytes, and knows nothing of what they say, but for the status line. Leaving a call closes
its connection at once, unless the body has been read to its end; that is all there is to cancellation.
"""

import asyncio
import contextlib
import math
import ssl
import time
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, NamedTuple, Self, cast

import aiohttp
import httpx2

from bridge.core.errors import Asked, BridgeError, Code
from bridge.core.headers import HeaderPolicy
from bridge.core.http_errors import error_from_response, parse_retry_after
from bridge.settings import UpstreamSettings
from bridge.upstream.engine import Body, Engine
from ollmbridge.v1 import error_details_pb2 as details_pb2
from ollmbridge.v1.chat_pb2 import Usage

__all__ = ["Call", "Upstream"]

ERROR_BODY_BYTES_MAX: Final = 4 * 1024 * 1024
"""Of an error's body. What is longer is no envelope, and only its start is given."""
_LINGER_S: Final = 0.02
"""How long a body whose completion is whole is read on for its end, so that its connection can serve the next call."""
_DECODED_BYTES_MAX: Final = 64 * 1024
_PIECE_BYTES_MAX: Final = 16 * 1024
"""Of a body, what is taken at once; what a slow caller does not take waits in the connection."""
_CAUSE_CHARS_MAX: Final = 160  # aiohttp quotes what it can't parse
_PATH: Final = "/v1/chat/completions"


@dataclass(eq=False)
class Call:
    """One call: what goes with it to the upstream, and what became known of it on the way.

    `headers` are sent, and `tags` added to the caller's own. The rest is filled in: the status, the metadata that the
    response's headers become, what was counted, and when (on the monotonic clock) the request went out, its first chunk
    came and the body was over.
    """

    headers: list[tuple[str, str]]
    asked: Asked = field(default_factory=Asked)
    tags: Mapping[str, str] = field(default_factory=dict)
    streamed: bool = False
    http_status: int | None = None
    content_type: str = ""
    returned: list[tuple[str, str]] = field(default_factory=list)
    sent_at: float | None = None
    first_chunk_at: float | None = None
    ended_at: float | None = None
    chunks: int = 0
    usage: Usage | None = None
    translation_s: float = 0.0


class Upstream:
    """The gateway, reached through one pool. An async context manager; leaving it closes every connection."""

    def __init__(self, settings: UpstreamSettings, policy: HeaderPolicy, *, connections_max: int) -> None:
        self._settings = settings
        self._policy = policy
        self._connections_max = connections_max
        self._url = httpx2.URL(settings.base_url + _PATH)
        self._tls = ssl.create_default_context(cafile=settings.ca_file)
        self._connector: aiohttp.TCPConnector | None = None

    async def __aenter__(self) -> Self:
        settings = self._settings
        self._connector = aiohttp.TCPConnector(
            limit=self._connections_max,
            force_close=not settings.keepalive_s,
            keepalive_timeout=settings.keepalive_s or None,
            ssl=self._tls,
        )
        self._engine = Engine(
            self._connector,
            self._url,
            proxy=settings.proxy,
            connect_timeout_s=settings.connect_timeout_s,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._engine.aclose()

    @property
    def own_key(self) -> bool:
        """Whether the key sent is the bridge's own."""
        return self._policy.own_key

    @property
    def connections(self) -> int:
        """How many connections to the upstream are in use or kept."""
        connector = self._connector
        if connector is None:
            return 0
        return len(connector._acquired) + sum(map(len, connector._conns.values()))  # noqa: SLF001 - there is no public count

    async def reach(self) -> None:
        """Make a connection to the upstream, or to the proxy before it, and close it. Raises BridgeError."""
        url = httpx2.URL(self._settings.proxy or self._settings.base_url)
        tls = self._tls if url.scheme == "https" else None
        port = url.port or {"https": 443, "http": 80}[url.scheme]
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s):
                _, writer = await asyncio.open_connection(url.host, port, ssl=tls)
        except (OSError, TimeoutError) as error:
            reason = details_pb2.ERROR_REASON_UPSTREAM_UNREACHABLE
            message = f"expected a connection to the upstream, found {str(error) or type(error).__name__}"
            raise BridgeError(Code.UNAVAILABLE, reason, message) from error
        writer.close()

    async def complete(self, body: bytes, call: Call) -> bytes:
        """Post a request and give the body of its 2xx answer, whole. Raises BridgeError for everything else."""
        try:
            async with contextlib.aclosing(await self._asked(body, call, accept="application/json")) as response:
                if not 200 <= response.status_code < 300:
                    raise await self._refused(response, call)
                limit = self._settings.response_bytes_max
                content = bytearray()
                await self._read(response, call, content, limit)
                if len(content) > limit:
                    message = f"expected a body of at most {limit} bytes, found a larger one"
                    raise BridgeError(Code.INTERNAL, details_pb2.ERROR_REASON_UPSTREAM_RESPONSE_TOO_LARGE, message)
                return bytes(content)
        finally:
            call.ended_at = time.monotonic()

    @contextlib.asynccontextmanager
    async def stream(self, body: bytes, call: Call) -> AsyncIterator[AsyncIterator[bytes]]:
        """Post a request and give the pieces of its event stream as they come. Raises BridgeError.

        A block left without an exception has had all that it needs.
        """
        call.streamed = True
        try:
            async with contextlib.aclosing(await self._asked(body, call, accept="text/event-stream")) as response:
                kind = call.content_type.partition(";")[0].strip().lower()
                if response.status_code != 200 or kind != "text/event-stream":
                    raise await self._refused(response, call)
                async with contextlib.aclosing(self._pieces(response, call)) as pieces:
                    yield pieces
                    with contextlib.suppress(BridgeError, TimeoutError):
                        async with asyncio.timeout(_LINGER_S):
                            await anext(pieces, None)
        finally:
            call.ended_at = time.monotonic()

    async def _asked(self, body: bytes, call: Call, *, accept: str) -> httpx2.Response:
        """Post a request and give its response, to be closed, when its head has come."""
        headers = [
            *call.headers,
            ("accept", accept),
            ("accept-encoding", "identity"),  # 200 MB of zeros travel in 204 KB of gzip
            ("content-type", "application/json"),
        ]
        # As a stream, since from `content` httpx2 works out headers, at the cost of all the rest.
        request = httpx2.Request("POST", self._url, headers=headers, stream=httpx2.ByteStream(body))
        call.sent_at = time.monotonic()
        first_s = self._settings.first_chunk_timeout_s if call.streamed else None
        timer = asyncio.timeout(first_s)
        try:
            async with timer:
                response = await self._engine.handle_async_request(request)
        except (aiohttp.ClientError, OSError) as error:
            if first_s is not None and timer.expired():
                raise _overdue(_FIRST_CHUNK, first_s) from error
            raise _failed(error) from error
        response.headers.encoding = "latin-1"  # else httpx2 tries others, for each header that is read
        call.http_status = response.status_code
        call.content_type = response.headers.get("content-type", "")
        call.returned = self._policy.returned_metadata(response.headers.multi_items())
        return response

    async def _read(self, response: httpx2.Response, call: Call, body: bytearray, bytes_max: int) -> None:
        """Read the body, or its beginning of a little more than `bytes_max` where it is larger."""
        async with contextlib.aclosing(self._pieces(response, call)) as pieces:
            async for piece in pieces:
                body += piece
                if len(body) > bytes_max:
                    return

    async def _pieces(self, response: httpx2.Response, call: Call) -> AsyncGenerator[bytes]:
        """Give the body's bytes as they come, decoded. The time that the reader takes between two is not counted."""
        body = cast("Body", response.stream)
        content = body.content
        decode = _decoder(response.headers.get("content-encoding", "").strip().lower())
        patience = _Patience(content, call, self._settings)
        try:
            while not content.at_eof():
                piece = body.read_nowait(_PIECE_BYTES_MAX)
                if not piece:
                    with patience:
                        piece = await content.read(_PIECE_BYTES_MAX)
                for part in decode(piece):
                    yield part
        except (BridgeError, aiohttp.ClientError, OSError) as error:
            if content._buffer:  # noqa: SLF001 - what had arrived before the body broke off, whole chunks maybe
                for part in decode(content._read_nowait(-1)):  # noqa: SLF001 - no public way leads there
                    yield part
            raise error if isinstance(error, BridgeError) else _failed(error) from error
        finally:
            patience.close()

    async def _refused(self, response: httpx2.Response, call: Call) -> BridgeError:
        body = bytearray()
        with contextlib.suppress(BridgeError):  # the status and the start say enough where the body breaks off
            await self._read(response, call, body, ERROR_BODY_BYTES_MAX)
        return error_from_response(
            response.status_code,
            bytes(body),
            content_type=call.content_type,
            asked=call.asked,
            retry_after_ms=parse_retry_after(response.headers.multi_items(), now_s=time.time()),
        )


# Failures of the connection


class _Failure(NamedTuple):
    kinds: tuple[type[Exception], ...]
    code: Code
    reason: "details_pb2.ErrorReason.ValueType"
    what: str


# In order: aiohttp's connector errors are OSErrors of its own too.
_FAILURES: Final = (
    _Failure(
        (
            aiohttp.ClientConnectorError,  # DNS, TCP, TLS, the proxy's connection
            aiohttp.ClientHttpProxyError,
            aiohttp.ClientSSLError,
            aiohttp.ConnectionTimeoutError,
            aiohttp.InvalidURL,
            aiohttp.ServerFingerprintMismatch,
        ),
        Code.UNAVAILABLE,
        details_pb2.ERROR_REASON_UPSTREAM_UNREACHABLE,
        "expected a connection to the upstream, found",
    ),
    _Failure(
        (aiohttp.ClientResponseError,),
        Code.INTERNAL,
        details_pb2.ERROR_REASON_INVALID_UPSTREAM_RESPONSE,
        "expected an HTTP response from the upstream, found",
    ),
    _Failure(
        (Exception,),
        Code.ABORTED,  # the request may have run, and been billed
        details_pb2.ERROR_REASON_UPSTREAM_DISCONNECTED,
        "expected a whole answer, found the connection lost:",
    ),
)


def _failed(error: Exception) -> BridgeError:
    row = next(row for row in _FAILURES if isinstance(error, row.kinds))
    return BridgeError(row.code, row.reason, f"{row.what} {str(error)[:_CAUSE_CHARS_MAX] or type(error).__name__}")


# Time

_SILENCE: Final = "silence on an open response"
_FIRST_CHUNK: Final = "wait for the first chunk"


def _overdue(what: str, limit_s: float) -> BridgeError:
    message = f"expected no {what} longer than {limit_s:g} s, found one"
    return BridgeError(Code.DEADLINE_EXCEEDED, details_pb2.ERROR_REASON_UPSTREAM_TIMEOUT, message)


class _Patience:
    """Bounds each wait for more of a body, `with` it: no longer than a silence may last, nor, until it came, than a
    stream's first chunk may take. What is waited for fails then.

    A timer of its own would be the dearest part of a wait. So there is one for all: when it goes off it looks whether
    the wait of that moment is over, and else is set anew.
    """

    def __init__(self, content: aiohttp.StreamReader, call: Call, settings: UpstreamSettings) -> None:
        self._content = content
        self._call = call
        self._idle_s = settings.idle_timeout_s
        self._first_s = settings.first_chunk_timeout_s if call.streamed else None
        self._until = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        now = time.monotonic()
        self._until, self._what, self._limit_s = now + self._idle_s, _SILENCE, self._idle_s
        if self._first_s is not None and self._call.first_chunk_at is None and self._call.sent_at is not None:
            first_until = self._call.sent_at + self._first_s
            if first_until < self._until:
                self._until, self._what, self._limit_s = first_until, _FIRST_CHUNK, self._first_s
        if self._timer is None or self._until < self._looks_at:
            self._look_at(self._until, now)

    def __exit__(self, *_error: object) -> None:
        self._until = math.inf

    def _look_at(self, when: float, now: float) -> None:
        self.close()
        self._looks_at = when
        self._timer = asyncio.get_running_loop().call_later(when - now, self._look)

    def _look(self) -> None:
        self._timer = None
        now = time.monotonic()
        if self._until <= now:
            self._content.set_exception(_overdue(self._what, self._limit_s))
        elif self._until < math.inf:
            self._look_at(self._until, now)

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()


# Bodies


def _decoder(encoding: str) -> Callable[[bytes], Iterable[bytes]]:
    """Give what undoes a content encoding piece by piece; no piece of its is larger than _DECODED_BYTES_MAX."""
    if encoding in {"", "identity"}:
        return lambda piece: (piece,)
    if encoding not in {"gzip", "x-gzip", "deflate"}:
        message = f"expected an identity, gzip or deflate encoded body from the upstream, found {encoding[:40]!r}"
        raise BridgeError(Code.INTERNAL, details_pb2.ERROR_REASON_INVALID_UPSTREAM_RESPONSE, message)
    inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)  # finds out itself whether the header is gzip's or zlib's

    def decode(piece: bytes) -> Iterator[bytes]:
        nonlocal inflate
        try:
            while piece:
                if inflate.eof:  # a body may be several members (RFC 1952, 2.2); what else follows is an error
                    inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)
                yield inflate.decompress(piece, _DECODED_BYTES_MAX)
                piece = inflate.unconsumed_tail or inflate.unused_data
        except zlib.error as error:
            message = f"expected a {encoding} encoded body from the upstream, found none: {error}"
            raise BridgeError(Code.INTERNAL, details_pb2.ERROR_REASON_INVALID_UPSTREAM_RESPONSE, message) from error

    return decode
