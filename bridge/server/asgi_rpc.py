"""A call of an ASGI server's, as an Rpc (`rpc.py`): its body is read when it is asked for, and its answer written.

The boundary runs in a task of its own, which is cancelled when the caller has left or its deadline has passed. A unary
reply waits for its status, since Connect writes both in one head; a stream is written message by message, each once
the reader has room for it. Nothing waits for a reader without a bound.
"""

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

import structlog

from bridge.core.errors import Code
from bridge.core.headers import Metadata
from bridge.http_server.shell import Message, Receive, Send
from bridge.server.peer import format_peer, name_certificate
from bridge.server.protocols.framing import IDENTITY, MessageError
from bridge.server.protocols.wire import Answer, Status, Wire
from bridge.server.rpc import ClientDisconnectedError, RefusedByTransportError, TakeRoom, find_expiry
from bridge.server.turns import SMALL_BYTES_MAX, Turns
from bridge.settings import Settings
from bridge.upstream.large import measure_text, run_for_size

__all__ = ["TRAILERS", "AsgiRpc", "send_answer", "to_refusal"]

TRAILERS: Final = "http.response.trailers"
"""The event, and the extension of servers that know it."""
_WRITE_BYTES: Final = 64 * 1024
"""Of an answer that is written at once: after each part the reader may hold back the next one."""
_UNASKED_BYTES: Final = 64 * 1024
"""Of a body that a server takes before it is asked for it, as uvicorn does."""
_LAST_WRITE_S: Final = 1.0
"""How long a status may take to be written if its caller took nothing before."""
_LOG: Final = structlog.get_logger("ollm_bridge")


class AsgiRpc:
    """A call of an ASGI server's. All calls share `turns`, for bodies that take long to decode."""

    def __init__(
        self, method: str, wire: Wire, scope: Message, receive: Receive, send: Send, turns: Turns, *, is_unary: bool
    ) -> None:
        self.method = method
        self.metadata = wire.metadata
        self.peer = format_peer(scope.get("client"))
        self.certificate = name_certificate(_read_certificate(scope))
        self.caller = None
        self.timeout_s = wire.timeout_s
        self._wire = wire
        self._content_length = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        self._receive = receive
        self._send = send
        self._turns = turns
        self._is_unary = is_unary
        self._initial: Metadata = ()
        self._reply: bytes | None = None
        self._status: Status | None = None
        self._has_started = False
        self._expires_at = find_expiry(wire.timeout_s, time.monotonic())
        self._is_writing = False
        self._has_received = False
        self._task: asyncio.Task[Any] | None = None
        self._watching: asyncio.Task[None] | None = None

    def has_expired(self) -> bool:
        """Return whether the caller's deadline has passed."""
        return time.monotonic() >= self._expires_at

    # What the boundary asks for

    async def receive(self, take_room: TakeRoom | None = None) -> bytes | None:
        """Return the body of the call's message; None if the caller ended the call without one, and after it."""
        if self._has_received:
            return None
        self._has_received = True
        try:
            body = await self._read_body(take_room)
        except MessageError as error:
            raise self._refuse(error) from error.with_traceback(None)  # its frames hold the whole message
        self._watching = asyncio.create_task(self._watch())
        return body

    async def decode(self, body: bytes) -> bytes | None:
        """Return the message in a body. One that may take long waits for its turn, so that others overtake a burst.

        A caller who leaves meanwhile leaves the turn to the next once the decoding has ended.
        """
        size = measure_text(body) if self._wire.encoding == IDENTITY else self._wire.body_bytes_max
        read = functools.partial(self._wire.read_body, body)
        try:
            if size <= SMALL_BYTES_MAX:
                return read()
            async with self._turns:
                return await run_for_size(size, read)
        except MessageError as error:
            raise self._refuse(error) from error.with_traceback(None)

    def _refuse(self, error: MessageError) -> RefusedByTransportError:
        self._status = to_refusal(error)
        return RefusedByTransportError(error.code.name)

    async def _read_body(self, take_room: TakeRoom | None) -> bytes:
        bytes_max = self._wire.body_bytes_max
        length = self._content_length
        if length.isdigit() and (len(length) > 18 or int(length) > bytes_max):
            raise _too_large(bytes_max)
        if take_room is not None and not (length.isdigit() and int(length) <= _UNASKED_BYTES):
            await take_room()
        parts, size, has_more = [], 0, True
        while has_more:
            event = await self._receive()
            if event["type"] != "http.request":
                raise ClientDisconnectedError
            parts.append(event.get("body", b""))
            has_more = event.get("more_body", False)
            size += len(parts[-1])
            if size > bytes_max:
                raise _too_large(bytes_max)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _watch(self) -> None:
        """Cancel the call when its caller has left. Nothing else comes behind the body."""
        if (await self._receive())["type"] == "http.disconnect" and self._task is not None:
            self._task.cancel()

    async def send_headers(self, metadata: Sequence[tuple[str, str]]) -> None:
        """Keep the initial metadata for the first message."""
        self._initial = metadata

    async def send(self, message: bytes, on_progress: Callable[[], None] | None = None) -> None:
        """Send a message; a unary method's goes out with the status."""
        if self._is_unary:
            self._reply = message
            return
        await self._start()
        data = self._wire.encode_message(message)
        await self._write(data[:_WRITE_BYTES])
        for at in range(_WRITE_BYTES, len(data), _WRITE_BYTES):
            if on_progress is not None:
                on_progress()
            await self._write(data[at : at + _WRITE_BYTES])

    def end(self, code: int, message: str, trailers: Metadata) -> None:
        """Keep the status until the boundary returns."""
        self._status = Status(code, message, trailers)

    # What the application does with it

    async def run(self, handling: Coroutine[Any, Any, None], settings: Settings) -> None:
        """Run the boundary's coroutine to its end, and send the status."""
        self._task = task = asyncio.create_task(self._handle(handling))
        timer = None
        if self.timeout_s is not None:
            limit_s = min(self.timeout_s, settings.call_timeout_max_s + 1)  # the boundary ends it before
            timer = asyncio.get_running_loop().call_later(limit_s, self._expire)
        try:
            await asyncio.wait({task})
            if self._status is not None:
                await self._finish(self._status, settings.write_stall_timeout_s)
        finally:
            if timer is not None:
                timer.cancel()
            for each in (task, self._watching):
                if each is not None and not each.done():
                    each.cancel()
                    await asyncio.wait({each})
            self._task = self._watching = None

    async def _handle(self, handling: Coroutine[Any, Any, None]) -> None:
        """Run the boundary's coroutine. Its end is no exception, which the task would keep, with its frames."""
        try:
            await handling
        except asyncio.CancelledError:
            if self._status is None and self.has_expired():
                self._status = Status(Code.DEADLINE_EXCEEDED, "the caller's deadline has passed")
        except Exception as fault:  # noqa: BLE001 - a fault of the boundary's own must not leave the caller waiting
            _LOG.error("a call ended without a status", method=self.method, fault=type(fault).__name__)
            self._status = Status(Code.INTERNAL, "internal error in the bridge")

    def _expire(self) -> None:
        if self._task is not None and not self._task.done():
            self._task.cancel()

    async def _finish(self, status: Status, stall_s: float) -> None:
        """Send what is left: all of a unary call, or a stream's end. Nothing is sent behind a write that was stuck."""
        limit_s = min(_LAST_WRITE_S, stall_s) if self._is_writing else stall_s
        with contextlib.suppress(TimeoutError, OSError):  # then the answer stays without its end
            if self._is_unary or not self._has_started:
                answer = self._wire.encode_answer(self._initial, self._reply, status)
                async with asyncio.timeout(None) as time_limit:
                    await send_answer(self._send, answer, functools.partial(_extend, time_limit, limit_s))
                return
            body, trailers = self._wire.encode_end(status)
            async with asyncio.timeout(limit_s):
                await self._send({"type": "http.response.body", "body": body, "more_body": False})
                if trailers:
                    await self._send({"type": TRAILERS, "headers": trailers})

    async def _start(self) -> None:
        if not self._has_started:
            headers = self._wire.encode_start(self._initial)
            has_trailers = self._wire.has_http_trailers
            self._has_started = True
            await self._put(
                {"type": "http.response.start", "status": 200, "headers": headers, "trailers": has_trailers}
            )

    async def _write(self, data: bytes) -> None:
        await self._put({"type": "http.response.body", "body": data, "more_body": True})

    async def _put(self, event: Message) -> None:
        self._is_writing = True
        try:
            await self._send(event)
        except OSError as error:
            raise ClientDisconnectedError from error
        self._is_writing = False


async def send_answer(send: Send, answer: Answer, on_part: Callable[[], None] = lambda: None) -> None:
    """Send a whole answer in parts; `on_part` is called before each."""
    body, has_trailers = answer.body, bool(answer.trailers)
    headers = [*answer.headers]
    if not has_trailers and answer.http_status != 204:
        headers.append((b"content-length", b"%d" % len(body)))
    on_part()
    start = {"type": "http.response.start", "status": answer.http_status, "headers": headers, "trailers": has_trailers}
    await send(start)
    for at in range(0, max(1, len(body)), _WRITE_BYTES):
        on_part()
        end = at + _WRITE_BYTES
        await send({"type": "http.response.body", "body": body[at:end], "more_body": end < len(body)})
    if has_trailers:
        await send({"type": TRAILERS, "headers": answer.trailers})


def _extend(time_limit: asyncio.Timeout, limit_s: float) -> None:
    time_limit.reschedule(asyncio.get_running_loop().time() + limit_s)


def to_refusal(error: MessageError) -> Status:
    """Return the status of a call whose head or body can't be read."""
    return Status(error.code, error.message)


def _too_large(bytes_max: int) -> MessageError:
    message = f"the request's body is larger than request_bytes_max allows ({bytes_max} bytes)"
    return MessageError(Code.RESOURCE_EXHAUSTED, message)


def _read_certificate(scope: Message) -> str:
    """Return the caller's certificate by the TLS extension (https://asgi.readthedocs.io/en/latest/specs/tls.html)."""
    tls = (scope.get("extensions") or {}).get("tls") or {}
    return next(iter(tls.get("client_cert_chain") or ()), "")
