"""The gateway as the server sees it: post a completion and get its body, whole or as it comes.

It uses an HTTP engine, reads the status line and a few headers, and knows nothing of what the body says. Leaving a call
closes its connection at once, unless the body has been read to its end; that is all there is to cancellation.
"""

import contextlib
import functools
import math
import time
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Final, Literal, Self

from bridge.core.errors import BridgeError
from bridge.core.headers import HeaderPolicy
from bridge.core.http_errors import error_from_response, parse_retry_after
from bridge.core.media_type import choose_media_type, get_essence
from bridge.settings import UpstreamSettings
from bridge.upstream.body import EventBody, header_text
from bridge.upstream.call import UpstreamCall
from bridge.upstream.coding import is_readable
from bridge.upstream.engine import Http1Engine
from bridge.upstream.exchange import Answer, ConnectError, Engine, EngineError, InvalidAnswerError
from bridge.upstream.failures import Wait, broken_head_error, describe_refusal, to_bridge_error, too_large_error
from bridge.upstream.large import run_for_size

__all__ = ["Upstream"]

ERROR_BODY_BYTES_MAX: Final = 4 * 1024 * 1024
"""Of an error's body. What is longer is no envelope, and only its start is used."""
_PATH: Final = "/v1/chat/completions"


class Upstream:
    """The gateway, reached through one pool. An async context manager; leaving it closes every connection.

    Raises SettingsError when it is entered, if the settings can't be used.
    """

    def __init__(self, settings: UpstreamSettings, policy: HeaderPolicy, *, connections_max: int) -> None:
        self._settings = settings
        self._policy = policy
        self._connections_max = connections_max
        self._engine: Engine | None = None

    async def __aenter__(self) -> Self:
        self._engine = _make_engine(self._settings, self._connections_max)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._engine is not None:
            await self._engine.close()

    @property
    def connections(self) -> int:
        """How many connections to the gateway are in use or kept."""
        return self._engine.connections if self._engine is not None else 0

    async def reach(self) -> None:
        """Make a connection to the gateway, through the proxy if there is one, and close it. Raises BridgeError."""
        try:
            await self._get_engine().reach()
        except ConnectError as error:
            raise to_bridge_error(error) from error

    async def complete(self, body: bytes, call: UpstreamCall) -> bytes:
        """Post a request and return the body of its 2xx answer, whole. Raises BridgeError for everything else."""
        limit = self._settings.response_bytes_max
        try:
            answer = await self._post(body, call, accept="application/json")
            try:
                if not 200 <= answer.status < 300:
                    raise await self._read_error(answer, call)
                found = EventBody(answer, call, self._settings)
                content = await _read(found, limit)
            finally:
                answer.close()
        finally:
            call.ended_at = time.monotonic()
        if len(content) > limit:
            raise too_large_error(limit, call)
        if found.failure is not None:
            raise found.failure
        return content

    @contextlib.asynccontextmanager
    async def stream(self, body: bytes, call: UpstreamCall) -> AsyncIterator[EventBody]:
        """Post a request and give the body of its event stream while it comes. Raises BridgeError.

        A block left without an exception has had all that it needs.
        """
        call.streamed = True
        try:
            answer = await self._post(body, call, accept="text/event-stream")
            try:
                if answer.status != 200 or get_essence(call.content_type) != "text/event-stream":
                    raise await self._read_error(answer, call)
                events = EventBody(answer, call, self._settings, is_stream=True)
                yield events
                await events.read_to_end()
            finally:
                answer.close()
        finally:
            call.ended_at = time.monotonic()

    async def _post(self, body: bytes, call: UpstreamCall, *, accept: str) -> Answer:
        """Post a request and return its answer, to be closed, when its head has come."""
        headers = [
            *call.headers,
            ("accept", accept),
            ("accept-encoding", "identity"),  # 200 MB of zeros travel in 204 KB of gzip
            ("content-type", "application/json"),
        ]
        limit_s = self._settings.first_chunk_timeout_s if call.streamed else math.inf
        wait = Wait("first chunk", limit_s, "upstream.first_chunk_timeout_s")
        call.sent_at = time.monotonic()
        if self._settings.deadline_header is not None and call.deadline_at is not None:
            left_s = max(call.deadline_at - call.sent_at, 0.0)
            headers.append((self._settings.deadline_header, _write_time(left_s, self._settings.deadline_header_unit)))
        try:
            answer = await self._get_engine().post(headers, body, timeout_s=wait.limit_s)
        except InvalidAnswerError as error:
            raise broken_head_error(error, call) from error
        except EngineError as error:
            raise to_bridge_error(error, call, wait) from error
        finally:
            call.waited_s += time.monotonic() - call.sent_at
        call.http_status = answer.status
        call.may_be_cut = answer.ends_with_connection
        call.content_type = choose_media_type(header_text(answer, b"content-type"))
        call.answer_headers = answer.headers
        call.returned = self._policy.returned_metadata(_decode(answer.headers))
        return answer

    async def _read_error(self, answer: Answer, call: UpstreamCall) -> BridgeError:
        """Return the error that an answer is; its status and its start say enough if the body breaks off."""
        body = EventBody(answer, call, self._settings)
        content = await _read(body, ERROR_BODY_BYTES_MAX)
        if body.raw_start is not None and is_readable(body.raw_start):
            content = body.raw_start
        read = functools.partial(
            error_from_response,
            answer.status,
            content,
            content_type=call.content_type,
            asked=call.asked,
            retry_after_ms=parse_retry_after(_decode(answer.headers), now_s=time.time()),
        )
        error = await run_for_size(len(content), read)
        if body.failure is not None and (body.raw_start is not None or not content):
            return describe_refusal(error, body.failure, answer.status)
        return error

    def _get_engine(self) -> Engine:
        if self._engine is None:
            raise RuntimeError("an Upstream is used inside `async with`")
        return self._engine


async def _read(body: EventBody, bytes_max: int) -> bytes:
    """Return the body, or its beginning of a little more than `bytes_max` if it is larger."""
    parts = []
    size = 0
    async for part in body:
        parts.append(part)
        size += len(part)
        if size > bytes_max:
            break
    return b"".join(parts)


def _make_engine(settings: UpstreamSettings, connections_max: int) -> Engine:
    base_url = "http://localhost" if settings.socket_path is not None else settings.base_url
    url = base_url + _PATH
    if settings.engine == "httpx":
        from bridge.upstream.httpx_engine import (  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415 - few need it
            HttpxEngine,
        )

        engine: Engine = HttpxEngine(settings, url=url, connections_max=connections_max)
        return engine
    return Http1Engine(settings, url=url, connections_max=connections_max)


def _write_time(time_s: float, unit: Literal["ms", "s"]) -> str:
    return f"{time_s * 1000:.0f}" if unit == "ms" else f"{time_s:.3f}"


def _decode(headers: list[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
