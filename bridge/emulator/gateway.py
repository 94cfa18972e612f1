"""A scripted gateway: the chat-completions API over plain HTTP/1.1, for demos, tests and benchmarks.

It knows the gateway's API page (fields, refusals, answers), the wire as TensorZero gateways are seen to speak it, and
the ways in which upstreams fail. Its rule: the same request gets the same answer, and a failure comes only when asked
for, by the model name `scenario::NAME?key=value&key=value` or, for all requests, by `Emulator(scenario=…)`. Where the
API page is silent, it is as strict as TensorZero 2026.4.1.

A scenario is a generator of steps (a head, a write, a wait, a leave) and does no I/O; a connection plays the steps. The
connection always reads, so that a peer's leaving is seen at once, and cancels whatever is being played. Only the
standard library is used, so that no fault of an HTTP library can hide a fault of the bridge.
"""

import asyncio
import base64
import binascii
import contextlib
import hmac
import inspect
import itertools
import json
import math
import os
import re
import socket
import struct
import time
import urllib.parse
import uuid
import weakref
import zlib
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from http import HTTPStatus
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, Self, assert_never, cast

__all__ = ["DEFAULT_MODELS", "SCENARIOS", "Emulator", "Exchange", "Scenario"]

DEFAULT_MODELS: tuple[str, ...] = ("near_qwen3_30b", "echo")
FUNCTIONS: Mapping[str, tuple[str, ...]] = {"hello": ("v1", "v2")}
SCENARIO_VARIANTS = ("v1", "v2")  # of a function that is named as a scenario
VERSION = "emulator"

HEAD_BYTES_MAX = (
    64 * 1024
)  # a request's line and headers, and a chunked body's trailers: four times what common servers take
BODY_BYTES_MAX = (
    64 * 1024 * 1024
)  # above the bridge's own limit of 16 MiB, so that the bridge's limit is the one that is met
EXCHANGES_MAX = 10_000  # records kept
EXCHANGE_BODY_BYTES_MAX = 256 * 1024 * 1024  # bodies kept, all records together
CACHE_ENTRIES_MAX = 1_000
REFUSALS_MAX = 1_000  # bodies whose refusals are counted
SCENARIO_NUMBER_MAX = 256 * 1024 * 1024  # a size or a count in a scenario
RATE_LIMIT = 1_000  # requests, as x-ratelimit-limit-requests shows it; nothing is refused by it
LINGER_S = (
    1.0  # how long a connection that the emulator closes waits for the peer to close too, lest a reset eats the answer
)
WRITES_A_TURN = 32  # then other connections get the loop

JsonObject = dict[str, Any]


@dataclass(eq=False)
class Exchange:
    """One request as the emulator saw it, and what became of it."""

    method: str
    path: str
    headers: dict[str, str]
    """By lower-case name; repeated ones joined by a comma."""
    body: bytes
    json: JsonObject | None = None
    """The body parsed; None when it is no JSON object."""
    tags: dict[str, str] = field(default_factory=dict)
    """As the spend log would have them."""
    billed: bool = False
    """False for a dry run, a request that was refused, and whatever is no completion."""
    received_at: float = field(default_factory=time.monotonic)
    """`time.monotonic()` when the request was whole."""
    status: int | None = None
    """None until a status line has been written."""
    events_sent: int = 0
    """SSE data events written, `[DONE]` included."""
    finished: bool = False
    """Whether the whole response has been written."""
    closed_at: float | None = None
    """`time.monotonic()` when the peer closed or reset the connection, before the end or after; None until then."""
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set together with `closed_at`."""

    async def wait_closed(self, timeout_s: float = 5) -> float:
        """`closed_at`, once the peer has left; TimeoutError when it stays."""
        async with asyncio.timeout(timeout_s):
            await self.closed.wait()
        return cast("float", self.closed_at)

    def record(self) -> JsonObject:
        """The exchange as JSON for other processes; of the authorization, only whether there was one."""
        headers = {name: value for name, value in self.headers.items() if name != "authorization"}
        plain = (
            "method",
            "path",
            "json",
            "tags",
            "billed",
            "received_at",
            "status",
            "events_sent",
            "finished",
            "closed_at",
        )
        return {name: getattr(self, name) for name in plain} | {
            "headers": headers,
            "authorization": "authorization" in self.headers,
            "body_bytes": len(self.body),
        }


class Emulator:
    """The gateway, from `async with` to its end: `async with Emulator() as gateway: … gateway.url …`.

    Args:
        host: the address to listen on.
        port: 0 takes a free one.
        scenario: what every request meets, unless its model names another: `NAME?key=value&key=value`.
        api_key: the bearer token that callers must send, as on the dev gateway; None ignores theirs, as on prod.
        models: the plain model names that exist.
        chunk_delay_s: the pause before each chunk of a stream but the first.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        scenario: str = "",
        api_key: str | None = None,
        models: Sequence[str] = DEFAULT_MODELS,
        chunk_delay_s: float = 0.0,
    ) -> None:
        self.host = host
        self.port = port
        self.scenario = scenario
        self.api_key = api_key
        self.models = tuple(models)
        self.chunk_delay_s = chunk_delay_s
        self.exchanges: list[Exchange] = []
        self.connections_opened = 0
        self.resets_due = 0
        self.cache: OrderedDict[str, float] = OrderedDict()
        self.refusals: OrderedDict[bytes, int] = OrderedDict()
        self.connections: set[_Connection] = set()
        self._unseen: deque[Exchange] = deque(maxlen=EXCHANGES_MAX)
        self._arrival = asyncio.Event()
        self._body_bytes = 0
        self._server: asyncio.Server | None = None
        if scenario:
            name, values = _parse_scenario(scenario)
            self.resets_due = int(values["connects"]) if name == "refuse" else 0

    @property
    def url(self) -> str:
        """The base URL, without a path."""
        return f"http://{self.host}:{self.port}"

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.refuse()
        connections = list(self.connections)
        for connection in connections:
            connection.leave()
        await asyncio.gather(*(connection.task for connection in connections), return_exceptions=True)
        for connection in connections:
            await connection.gone.wait()

    async def refuse(self) -> None:
        """Stop listening: connects are refused (ECONNREFUSED); connections already open stay."""
        if self._server is not None:
            self._server.close()
            self._server = None
            await asyncio.sleep(0)

    async def accept(self) -> None:
        """Listen (again), on the same port, and reset no more connections at accept."""
        if self._server is None:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(lambda: _Connection(self), self.host, self.port, backlog=4096)
            self.port = self._server.sockets[0].getsockname()[1]
            return
        self.resets_due = 0

    async def next_exchange(self, timeout_s: float = 5) -> Exchange:
        """The oldest exchange that this method has not yet given out, once there is one; else TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while not self._unseen:
                self._arrival.clear()
                await self._arrival.wait()
        return self._unseen.popleft()

    def keep(self, exchange: Exchange) -> None:
        """Record an exchange, and let the oldest go."""
        self.exchanges.append(exchange)
        self._unseen.append(exchange)
        self._arrival.set()
        self._body_bytes += len(exchange.body)
        while self.exchanges[:-1] and (
            len(self.exchanges) > EXCHANGES_MAX or self._body_bytes > EXCHANGE_BODY_BYTES_MAX
        ):
            self._body_bytes -= len(self.exchanges.pop(0).body)

    def answer(self, exchange: Exchange) -> "Iterator[_Step]":
        """The steps of the answer to a whole request."""
        path, _, query = exchange.path.partition("?")
        routes = _ROUTES.get(path)
        try:
            if routes is None:
                text = f"Route not found: {exchange.method} {path}"
                return _send_json(404, {"error": text})
            if exchange.method not in routes:
                return _send(405, b"", ("allow", ", ".join(routes)))
            return routes[exchange.method](self, exchange, query)
        except _RefusedError as refusal:
            return refusal.steps()


# -- Steps: what a connection can be told to do


class _Head(NamedTuple):
    """A status line and headers; `length` None sends the body in HTTP chunks."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    length: int | None = None


class _Write(NamedTuple):
    """Bytes of the body in one write; `framed` False goes past the HTTP chunk's frame."""

    data: bytes
    events: int = 0
    framed: bool = True


class _Wait(NamedTuple):
    """A pause; infinity is until the peer leaves."""

    seconds: float


class _Leave(NamedTuple):
    """The end of the connection, in the middle of whatever was being said."""

    reset: bool


_Step = _Head | _Write | _Wait | _Leave


def _send(status: int, body: bytes, *headers: tuple[str, str]) -> Iterator[_Step]:
    yield _Head(status, headers, len(body))
    yield _Write(body)


def _send_json(status: int, value: Any, *headers: tuple[str, str]) -> Iterator[_Step]:
    return _send(status, _dumps(value), ("content-type", "application/json"), *headers)


_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def _dumps(value: Any) -> bytes:
    return _encode(value).encode()


def _event(value: Any) -> bytes:
    return b"data: " + _dumps(value) + b"\n\n"


_DONE = b"data: [DONE]\n\n"


class _RefusedError(Exception):
    """A request that gets an error envelope for its answer."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.envelope = {"message": message, "type": _error_type(status), "code": code, "param": param}

    def steps(self) -> Iterator[_Step]:
        return _send_json(self.status, {"error": self.envelope})


_ERROR_TYPES = {
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout",
}


def _error_type(status: int) -> str:
    return _ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")


# -- The wire: HTTP/1.1, as much of it as a gateway's clients speak

_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~]+) HTTP/1\.([01])")
_HEADER_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;.*)?")


class _Connection(asyncio.Protocol):
    """One TCP connection: requests in, one after the other, and the steps of their answers out."""

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator
        self.exchanges: weakref.WeakSet[Exchange] = weakref.WeakSet()
        self.buffer = bytearray()
        self.arrived = asyncio.Event()
        self.writable = asyncio.Event()
        self.writable.set()
        self.gone = asyncio.Event()
        self.discarding = False
        self.left = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=0)  # writable then means: all that was written is the kernel's
        self.emulator.connections_opened += 1
        self.emulator.connections.add(self)
        self.task = asyncio.get_running_loop().create_task(self.serve())
        if self.emulator.resets_due > 0:
            self.emulator.resets_due -= 1
            self.reset()

    def data_received(self, data: bytes) -> None:
        if self.discarding:
            return
        self.buffer += data
        self.arrived.set()
        if len(self.buffer) > HEAD_BYTES_MAX + BODY_BYTES_MAX:
            self.leave()

    def eof_received(self) -> bool:
        self.peer_left()
        self.transport.abort()
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the base's signature
        if not self.left:
            self.peer_left()
        self.emulator.connections.discard(self)
        self.gone.set()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def peer_left(self) -> None:
        """Mark the peer's leaving on every exchange of the connection, and stop playing."""
        self.left = True
        for exchange in self.exchanges:
            exchange.closed_at = time.monotonic()
            exchange.closed.set()
        self.task.cancel()

    def leave(self) -> None:
        """Drop the connection at once."""
        self.left = True
        self.task.cancel()
        self.transport.abort()

    def reset(self) -> None:
        """Drop the connection by RST."""
        peer = self.transport.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.leave()

    async def close(self) -> None:
        """Say that no more comes, then wait a little for the peer to close: its closing cancels this task."""
        self.discarding = True
        await self.writable.wait()
        with contextlib.suppress(OSError):  # the peer has reset it meanwhile
            self.transport.write_eof()
        await asyncio.sleep(LINGER_S)

    async def serve(self) -> None:
        try:
            while await self.serve_one():
                pass
            if not self.left:
                await self.close()
        finally:
            self.leave()

    async def serve_one(self) -> bool:
        """Answer the next request; whether another may follow on this connection."""
        try:
            exchange, keep_alive = await self.read_request()
        except _RefusedError as refusal:
            await self.play(Exchange("GET", "", {}, b""), refusal.steps(), keep_alive=False)
            return False
        self.exchanges.add(exchange)
        if not exchange.path.startswith("/_emulator/"):
            self.emulator.keep(exchange)
        return await self.play(exchange, self.emulator.answer(exchange), keep_alive=keep_alive)

    async def read_request(self) -> tuple[Exchange, bool]:
        """A whole request, and whether its sender wants to keep the connection."""
        head = await self.take_until(b"\r\n\r\n")
        first, *lines = head.lstrip(b"\r\n").split(b"\r\n")
        request_line = _REQUEST_LINE.fullmatch(first)
        if request_line is None:
            raise _RefusedError(400, "the request line is not HTTP/1.1")
        headers: dict[str, str] = {}
        for line in lines:
            header = _HEADER_LINE.fullmatch(line)
            if header is None:
                raise _RefusedError(400, "a header line is malformed")
            name, value = header[1].decode("ascii").lower(), header[2].decode("latin-1").rstrip()
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        body = await self.read_body(headers)
        connection = headers.get("connection", "").lower()
        keep_alive = "close" not in connection if request_line[3] == b"1" else "keep-alive" in connection
        return Exchange(request_line[1].decode(), request_line[2].decode(), headers, body), keep_alive

    async def read_body(self, headers: Mapping[str, str]) -> bytes:
        coding, length = headers.get("transfer-encoding"), headers.get("content-length")
        if coding is not None and (coding.lower() != "chunked" or length is not None):
            raise _RefusedError(400, "transfer-encoding: expected `chunked` alone, without content-length")
        if length is not None and not re.fullmatch(r"[0-9]{1,15}", length):
            raise _RefusedError(400, "content-length: expected digits")
        if int(length or 0) > BODY_BYTES_MAX:
            raise _RefusedError(413, f"the body is larger than {BODY_BYTES_MAX} bytes")
        if headers.get("content-encoding", "identity") != "identity":
            raise _RefusedError(415, "content-encoding: expected none")
        if headers.get("expect", "").lower() == "100-continue" and not self.buffer:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return await self.take(int(length or 0)) if coding is None else await self.read_chunked()

    async def read_chunked(self) -> bytes:
        body = bytearray()
        while True:
            line = _CHUNK_LINE.fullmatch(await self.take_until(b"\r\n"))
            if line is None:
                raise _RefusedError(400, "an HTTP chunk has a malformed size")
            size = int(line[1], 16)
            if size == 0:
                break
            if len(body) + size > BODY_BYTES_MAX:
                raise _RefusedError(413, f"the body is larger than {BODY_BYTES_MAX} bytes")
            body += await self.take(size)
            if await self.take(2) != b"\r\n":
                raise _RefusedError(400, "an HTTP chunk is longer than its size")
        while await self.take_until(b"\r\n"):
            pass  # trailers say nothing here
        return bytes(body)

    async def take(self, size: int) -> bytes:
        while len(self.buffer) < size:
            await self.more()
        data = bytes(memoryview(self.buffer)[:size])
        del self.buffer[:size]
        return data

    async def take_until(self, mark: bytes) -> bytes:
        """The bytes before the mark, which goes too."""
        while (end := self.buffer.find(mark, 0, HEAD_BYTES_MAX)) < 0:
            if len(self.buffer) >= HEAD_BYTES_MAX:
                raise _RefusedError(431, f"the headers are larger than {HEAD_BYTES_MAX} bytes")
            await self.more()
        return (await self.take(end + len(mark)))[:end]

    async def more(self) -> None:
        self.arrived.clear()
        await self.arrived.wait()

    async def play(self, exchange: Exchange, steps: Iterator[_Step], *, keep_alive: bool) -> bool:
        """Do the steps; whether the connection can take another request."""
        chunked, unsent = False, b""
        for count, step in enumerate(steps, 1):
            match step:
                case _Head(status, headers, length):
                    chunked = length is None
                    unsent = self.head(exchange, status, headers, length, keep_alive=keep_alive)
                    exchange.status = status
                    exchange.billed = exchange.billed and status < 400
                case _Write(data, events, framed):
                    if exchange.method == "HEAD":
                        data = b""
                    elif chunked and framed:
                        data = b"%X\r\n%b\r\n" % (len(data), data)
                    self.transport.write(unsent + data)
                    unsent = b""
                    exchange.events_sent += events
                    await self.writable.wait()
                    if count % WRITES_A_TURN == 0:
                        await asyncio.sleep(0)
                case _Wait(seconds):
                    self.transport.write(unsent)
                    unsent = b""
                    await (asyncio.sleep(seconds) if seconds < math.inf else asyncio.Event().wait())
                case _Leave(reset):
                    self.transport.write(unsent)
                    await self.writable.wait()
                    if reset:
                        self.reset()
                    return False
                case _:
                    assert_never(step)
        self.transport.write(unsent + (b"0\r\n\r\n" if chunked else b""))
        await self.writable.wait()
        exchange.finished = True
        return keep_alive

    def head(
        self,
        exchange: Exchange,
        status: int,
        headers: Iterable[tuple[str, str]],
        length: int | None,
        *,
        keep_alive: bool,
    ) -> bytes:
        served = len(self.emulator.exchanges)
        lines = [
            *headers,
            ("transfer-encoding", "chunked") if length is None else ("content-length", str(length)),
            *([] if keep_alive else [("connection", "close")]),
            ("date", formatdate(usegmt=True)),
            ("x-request-id", exchange.headers.get("x-request-id") or str(uuid.uuid4())),
            ("openai-processing-ms", str(round((time.monotonic() - exchange.received_at) * 1000))),
            ("x-ollm-gateway-version", VERSION),
            ("x-ratelimit-limit-requests", str(RATE_LIMIT)),
            ("x-ratelimit-remaining-requests", str(RATE_LIMIT - 1 - served % RATE_LIMIT)),
        ]
        reason = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "Unknown"
        text = "".join(f"{name}: {_one_line(value)}\r\n" for name, value in lines)
        return f"HTTP/1.1 {status} {reason}\r\n{text}\r\n".encode("latin-1", "replace")


def _one_line(value: str) -> str:
    return value.replace("\r", " ").replace("\n", " ")


# -- The request: what the API page and TensorZero refuse


@dataclass(frozen=True)
class _Field:
    """A key of an object: what its value must be, whether null counts as absent, whether it must be there."""

    expected: str
    fits: Callable[[Any], bool]
    null: bool = True
    required: bool = False
    inside: "Mapping[str, _Field] | None" = None
    strict: bool = False  # refuse keys that are not in `inside`


def _is(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: type(value) in kinds


def _one_of(*words: str) -> Callable[[Any], bool]:
    return lambda value: value in words


def _integer(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _is_uuid(value: Any) -> bool:
    try:
        uuid.UUID(value)
    except (ValueError, AttributeError, TypeError):
        return False
    return True


def _is_base64(value: Any) -> bool:
    try:
        return bool(base64.b64decode(value, validate=True))
    except (binascii.Error, ValueError, TypeError):
        return False


def _is_data_url(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("data:") and _is_base64(value.partition(";base64,")[2])


def _is_tool_choice(value: Any) -> bool:
    return type(value) is dict or value in ("none", "auto", "required")


def _is_string_map(value: Any) -> bool:
    return type(value) is dict and _all_strings(value.values())


def _all_strings(values: Iterable[Any]) -> bool:
    return all(type(value) is str for value in values)


_NUMBER = _Field("a number", _is(int, float))
_BOOLEAN = _Field("a boolean", _is(bool))
_FLAG = _Field("a boolean", _is(bool), null=False)
_STRING = _Field("a string", _is(str))
_LIMIT = _Field("an integer from 0 to 2147483647", _integer(0, 2**31 - 1))
_INT32 = _Field("a 32-bit integer", _integer(-(2**31), 2**31 - 1))


def _required(expected: str, fits: Callable[[Any], bool]) -> _Field:
    return _Field(expected, fits, null=False, required=True)


def _object(inside: Mapping[str, _Field], *, strict: bool = False, required: bool = True) -> _Field:
    return _Field("an object", _is(dict), null=not required, required=required, inside=inside, strict=strict)


_NAME = _required("a string", _is(str))
_OBJECT = _Field("an object", _is(dict))
_ARRAY = _Field("an array", _is(list))
_ARRAY_HERE = _required("an array", _is(list))
_ANY = _Field("JSON", lambda _: True)


_CACHE_MODE = _Field("on, off, read_only or write_only", _one_of("on", "off", "read_only", "write_only"), null=False)
_FIELDS: Mapping[str, _Field] = {
    "model": _NAME,
    "messages": _ARRAY_HERE,
    "temperature": _NUMBER,
    "top_p": _NUMBER,
    "presence_penalty": _NUMBER,
    "frequency_penalty": _NUMBER,
    "max_tokens": _LIMIT,
    "max_completion_tokens": _LIMIT,
    "n": _INT32,
    "stop": _Field("an array of strings", lambda value: type(value) is list and _all_strings(value)),
    "seed": _INT32,
    "reasoning_effort": _STRING,
    "verbosity": _STRING,
    "service_tier": _Field("auto, default, priority or flex", _one_of("auto", "default", "priority", "flex")),
    "stream": _BOOLEAN,
    "stream_options": _object({"include_usage": _FLAG}, required=False),
    "tools": _ARRAY,
    "tool_choice": _Field("none, auto, required or an object", _is_tool_choice),
    "parallel_tool_calls": _BOOLEAN,
    "response_format": _OBJECT,
    "ollm::tags": _Field("an object of strings", _is_string_map, null=False),
    "ollm::cache_options": _object({"enabled": _CACHE_MODE, "max_age_s": _LIMIT}, required=False),
    "ollm::dryrun": _BOOLEAN,
    "ollm::variant_name": _STRING,
    "ollm::episode_id": _Field("a UUID", _is_uuid),
    "ollm::deny_unknown_fields": _FLAG,
    "ollm::include_raw_usage": _FLAG,
    "ollm::include_raw_response": _FLAG,
}

# Objects that a word tells apart: a message's role, the type of a part, a tool, a tool choice, a response format. A
# table's row that has `type` among its fields refuses other keys, as TensorZero does for images, audio and files.
_Variants = Mapping[str, Mapping[str, _Field]]
_TEXT_OR_PARTS = _required("a string or an array", _is(str, list))
_MESSAGES: _Variants = {
    "system": {"content": _TEXT_OR_PARTS},
    "developer": {"content": _TEXT_OR_PARTS},
    "user": {"content": _TEXT_OR_PARTS},
    "assistant": {"content": _Field("a string or an array", _is(str, list)), "tool_calls": _ARRAY},
    "tool": {"tool_call_id": _NAME},
}
_TOOL_CALL = {"id": _NAME, "type": _NAME, "function": _object({"name": _NAME, "arguments": _NAME})}
_IMAGE = {"url": _NAME, "detail": _Field("low, high or auto", _one_of("low", "high", "auto"))}
_AUDIO = {"data": _required("base64", _is_base64), "format": _NAME}
_FILE = {"file_data": _required("a base64 data URL", _is_data_url), "filename": _STRING}
_PARTS: _Variants = {
    "text": {"text": _NAME},
    "image_url": {"type": _NAME, "image_url": _object(_IMAGE, strict=True)},
    "input_audio": {"type": _NAME, "input_audio": _object(_AUDIO, strict=True)},
    "file": {"type": _NAME, "file": _object(_FILE, strict=True)},
}
_FUNCTION = {"name": _NAME, "description": _STRING, "parameters": _required("JSON", lambda _: True), "strict": _FLAG}
_CUSTOM = {"name": _NAME, "description": _STRING, "format": _OBJECT}
_TOOLS: _Variants = {
    "function": {"function": _object(_FUNCTION)},
    "custom": {"custom": _object(_CUSTOM, strict=True)},
}
_ALLOWED = {"mode": _required("auto or required", _one_of("auto", "required")), "tools": _ARRAY_HERE}
_CHOICES: _Variants = {
    "function": {"function": _object({"name": _NAME})},
    "allowed_tools": {"allowed_tools": _object(_ALLOWED)},
}
_SCHEMA = {"name": _NAME, "description": _STRING, "schema": _ANY, "strict": _FLAG}
_FORMATS: _Variants = {"text": {}, "json_object": {}, "json_schema": {"json_schema": _object(_SCHEMA)}}
_KINDS = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", int: "an integer", float: "a float"}


def _refuse(where: str, expected: str, value: Any) -> NoReturn:
    found = f"`{value[:64]}`" if isinstance(value, str) and len(value) <= 64 else _KINDS.get(type(value), "null")
    raise _RefusedError(400, f"{where}: expected {expected}, found {found}", param=where)


def _check(value: JsonObject, fields: Mapping[str, _Field], where: str = "", *, strict: bool = False) -> None:
    """Refuse an object whose keys do not fit."""
    for name, rule in fields.items():
        path = f"{where}.{name}" if where else name
        if name not in value:
            if rule.required:
                raise _RefusedError(400, f"{where or 'the body'}: missing field `{name}`", param=path)
        elif not (value[name] is None and rule.null):
            if not rule.fits(value[name]):
                _refuse(path, rule.expected, value[name])
            if rule.inside is not None:
                _check(value[name], rule.inside, path, strict=rule.strict)
    if strict and (unknown := sorted(value.keys() - fields.keys())):
        raise _RefusedError(400, f"{where}: unknown fields {', '.join(unknown)}", param=where)


def _check_variant(value: Any, key: str, table: _Variants, where: str) -> str:
    """Refuse what is not one of a table's objects, told apart by their value of `key`, which is returned."""
    if type(value) is not dict:
        _refuse(where, "an object", value)
    word = value.get(key)
    if type(word) is not str or word not in table:
        _refuse(f"{where}.{key}", ", ".join(table), word)
    _check(value, table[word], where, strict="type" in table[word])
    return word


def _parse_body(body: bytes) -> JsonObject:
    try:
        text = body.decode()
        value = json.loads(text, parse_constant=_refuse_constant)
        if "\\u" in text:
            _dumps(value)  # a lone surrogate cannot be encoded
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", type(error).__name__)
        raise _RefusedError(400, f"Failed to parse the request body as JSON: {reason}") from error
    if not isinstance(value, dict):
        _refuse("the body", "an object", value)
    return value


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(constant)


def _check_body(body: JsonObject) -> None:
    """Refuse, in the gateway's order, all that can be refused without looking a name up."""
    _check(body, _FIELDS)
    if body.get("n") not in (None, 1):
        raise _RefusedError(400, "n: expected 1 or nothing", param="n")
    unknown = sorted(body.keys() - _FIELDS.keys())
    if unknown and body.get("ollm::deny_unknown_fields"):
        raise _RefusedError(400, f"unknown fields: {', '.join(unknown)}", param=unknown[0])
    options = body.get("stream_options")
    unused = options is not None and not options.get("include_usage")
    if unused and body.get("stream") and body.get("ollm::include_raw_usage"):
        message = "ollm::include_raw_usage in a stream requires stream_options.include_usage to be true"
        raise _RefusedError(400, message, param="stream_options.include_usage")
    _check_messages(body["messages"])
    _check_tools(body)


def _check_messages(messages: list[Any]) -> None:
    if not messages:
        raise _RefusedError(400, "messages: expected at least 1 item", param="messages")
    call_ids: set[str] = set()
    for at, message in enumerate(messages):
        where = f"messages[{at}]"
        role = _check_variant(message, "role", _MESSAGES, where)
        for number, call in enumerate(message.get("tool_calls") or [] if role == "assistant" else []):
            if type(call) is not dict:
                _refuse(f"{where}.tool_calls[{number}]", "an object", call)
            _check(call, _TOOL_CALL, f"{where}.tool_calls[{number}]")
            call_ids.add(call["id"])
        if role == "tool" and message["tool_call_id"] not in call_ids:
            text = f"{where}.tool_call_id: no earlier tool call has this id"
            raise _RefusedError(400, text, param=f"{where}.tool_call_id")
        content = message.get("content")
        for number, part in enumerate(content if role != "tool" and type(content) is list else []):
            place = f"{where}.content[{number}]"
            kind = _check_variant(part, "type", _PARTS, place)
            if role not in ("user", "assistant") and kind != "text":
                _refuse(f"{place}.type", "text", kind)


def _check_tools(body: JsonObject) -> None:
    names: list[str] = []
    for at, tool in enumerate(body.get("tools") or []):
        kind = _check_variant(tool, "type", _TOOLS, f"tools[{at}]")
        names.append(tool[kind]["name"])
    if len(set(names)) < len(names):
        raise _RefusedError(400, "tools: expected different names", param="tools")
    choice = body.get("tool_choice")
    if type(choice) is dict:
        _check_variant(choice, "type", _CHOICES, "tool_choice")
        for name in _chosen_names(choice):
            if name not in names:
                raise _RefusedError(
                    400, f"tool_choice: expected a tool that is defined, found `{name}`", param="tool_choice"
                )
    if body.get("response_format") is not None:
        _check_variant(body["response_format"], "type", _FORMATS, "response_format")


def _chosen_names(choice: JsonObject) -> list[str]:
    if choice["type"] == "function":
        return [choice["function"]["name"]]
    names = []
    for at, tool in enumerate(choice["allowed_tools"]["tools"]):
        _check_variant(tool, "type", _CHOICES, f"tool_choice.allowed_tools.tools[{at}]")
        names.append(tool["function"]["name"])
    return names


# -- The answer


class _Answer(NamedTuple):
    """What the model says: words of a text, or tool calls."""

    words: list[str]
    tool_calls: list[JsonObject]
    finish_reason: str
    usage: dict[str, int]


def _answer(body: JsonObject) -> _Answer:
    """The same for the same request."""
    messages = body["messages"]
    calls = _tool_calls(body) if messages[-1]["role"] == "user" else []
    if calls:
        words, finish = [call["function"]["arguments"] for call in calls], "tool_calls"
    else:
        words, finish = _words(_text(body), body)
    prompt = sum(len(_content_text(message.get("content")).split()) for message in messages)
    usage = {"prompt_tokens": prompt, "completion_tokens": len(words), "total_tokens": prompt + len(words)}
    return _Answer([] if calls else words, calls, finish, usage)


def _text(body: JsonObject) -> str:
    wanted = body.get("response_format") or {"type": "text"}
    if wanted["type"] == "json_schema":
        return _encode(_instance(wanted["json_schema"].get("schema")))
    messages = body["messages"]
    results = itertools.takewhile(lambda message: message["role"] == "tool", reversed(messages))
    heard = ", ".join(_content_text(message.get("content")) for message in reversed(list(results)))
    if heard:
        text = f"The tool said: {heard}"
    else:
        said = next((message["content"] for message in reversed(messages) if message["role"] == "user"), "")
        text = f"You said: {_content_text(said)}"
    return _encode({"text": text}) if wanted["type"] == "json_object" else text


def _content_text(content: Any) -> str:
    if isinstance(content, list):
        return " ".join(
            part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)
        )
    return content if isinstance(content, str) else "" if content is None else _encode(content)


def _words(text: str, body: JsonObject) -> tuple[list[str], str]:
    """The text up to the first stop sequence, as words with the space before them, and why it ends."""
    ends = [end for stop in body.get("stop") or [] if stop and (end := text.find(stop)) >= 0]
    words = re.findall(r"\s*\S+|\s+$", text[: min(ends, default=len(text))])
    limits = [body[name] for name in ("max_tokens", "max_completion_tokens") if body.get(name) is not None]
    if len(words) > min(limits, default=len(words)):
        return words[: min(limits)], "length"
    return words, "stop"


def _tool_calls(body: JsonObject) -> list[JsonObject]:
    choice = body.get("tool_choice") or "auto"
    tools = [] if choice == "none" else body.get("tools") or []
    mode = choice
    if isinstance(choice, dict):
        names = _chosen_names(choice)
        tools = [tool for tool in tools if tool[tool["type"]]["name"] in names]
        mode = choice.get("allowed_tools", {}).get("mode", "")
    if not (mode == "required" and body.get("parallel_tool_calls")):
        tools = tools[:1]
    first = 1 + sum(len(message.get("tool_calls") or []) for message in body["messages"])
    return [
        {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": tool[tool["type"]]["name"], "arguments": text},
        }
        for number, tool in enumerate(tools, first)
        for text in [_encode(_instance(tool["function"]["parameters"])) if tool["type"] == "function" else "Paris"]
    ]


_PLACES = ("location", "city")
_SIMPLE: Mapping[str, Any] = {"string": "text", "integer": 0, "number": 0, "boolean": False, "null": None, "array": []}


def _instance(schema: Any, name: str = "", depth: int = 0) -> Any:
    """A small value that a schema allows, for the simple ones among schemas."""
    if not isinstance(schema, dict) or depth > 32:
        return {}
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    for key in ("enum", "anyOf", "oneOf", "allOf"):
        if isinstance(schema.get(key), list) and schema[key]:
            return schema[key][0] if key == "enum" else _instance(schema[key][0], name, depth + 1)
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0] if kind else None
    if kind == "string" and name in _PLACES:
        return "Paris"
    if kind in ("integer", "number") and isinstance(schema.get("minimum"), int | float):
        return schema["minimum"]
    if isinstance(kind, str) and kind in _SIMPLE:
        return _SIMPLE[kind]
    properties, required = schema.get("properties"), schema.get("required")
    return {
        key: _instance(inner, key, depth + 1)
        for key, inner in (properties.items() if isinstance(properties, dict) else ())
        if key in _PLACES or (isinstance(required, list) and key in required)
    }


class _Chunk(NamedTuple):
    """What changes from one chunk of a stream to the next."""

    delta: JsonObject
    finish_reason: str | None = None
    usage: dict[str, int] | None = None
    extra: JsonObject | None = None


_SSE = (("content-type", "text/event-stream"), ("cache-control", "no-cache"))
_JSON = (("content-type", "application/json"),)
_BODY_PARTS = 8  # a body that is no stream counts as this many events in `after`


class _Call:
    """A request that was accepted, and its answer in each form that a scenario may want."""

    def __init__(self, emulator: Emulator, exchange: Exchange, body: JsonObject, model: str, *, cached: bool) -> None:
        self.emulator = emulator
        self.received = exchange.body
        self.model = model
        self.cached = cached
        self.answer = _answer(body)
        self.stream = bool(body.get("stream"))
        self.raw_usage = bool(body.get("ollm::include_raw_usage"))
        self.raw_response = bool(body.get("ollm::include_raw_response"))
        self.include_usage = self.raw_usage or bool((body.get("stream_options") or {}).get("include_usage"))
        self.usage = dict.fromkeys(self.answer.usage, 0) if cached else self.answer.usage
        self.id = str(_uuid7())
        self.episode_id = str(uuid.UUID(body["ollm::episode_id"])) if body.get("ollm::episode_id") else str(_uuid7())
        self.created = int(time.time())
        shell = _event(self.chunk_object(_Chunk({"@": 0})))
        self.before, self.after = shell.split(b'{"@":0}')

    def completion(self, kind: str, choice: JsonObject, usage: dict[str, int] | None) -> JsonObject:
        return {
            "id": self.id,
            "episode_id": self.episode_id,
            "choices": [choice],
            "created": self.created,
            "model": self.model,
            "system_fingerprint": "",
            "service_tier": None,
            "object": kind,
            "usage": usage,
        }

    def reply(self) -> JsonObject:
        """The answer whole."""
        message: JsonObject = {"role": "assistant", "content": "".join(self.answer.words) or None}
        if self.answer.tool_calls:
            message["tool_calls"] = self.answer.tool_calls
        choice = {"index": 0, "finish_reason": self.answer.finish_reason, "message": message}
        reply = self.completion("chat.completion", choice, self.usage)
        if self.raw_usage:
            reply["ollm_raw_usage"] = self.raw_entries(self.provider_usage())
        if self.raw_response:
            reply["ollm_raw_response"] = self.raw_entries(
                _encode({"choices": [choice], "usage": self.provider_usage()})
            )
        return reply

    def provider_usage(self) -> JsonObject:
        return {**self.answer.usage, "prompt_tokens_details": {"cached_tokens": 0}}

    def raw_entries(self, data: Any) -> list[JsonObject]:
        entry = {
            "model_inference_id": self.id,
            "provider_type": "emulator",
            "api_type": "chat_completions",
            "data": data,
        }
        return [] if self.cached else [entry]

    def chunks(self) -> list[_Chunk]:
        """The answer in chunks; the last one finishes."""
        deltas: list[JsonObject] = [{"role": "assistant", "content": ""}]
        deltas += [{"content": word} for word in self.answer.words]
        for index, call in enumerate(self.answer.tool_calls):
            deltas += [{"tool_calls": [fragment]} for fragment in _fragments(index, call)]
        raw = self.raw_response and not self.cached
        extras = ({"ollm_raw_chunk": _encode({"choices": [{"delta": delta}]})} if raw else None for delta in deltas)
        chunks = [_Chunk(delta, extra=extra) for delta, extra in zip(deltas, extras, strict=True)]
        if self.raw_usage and not self.cached:
            chunks.append(_Chunk({}, extra={"ollm_raw_usage": self.raw_entries(self.provider_usage())}))
        return [*chunks, _Chunk({}, self.answer.finish_reason, self.usage if self.include_usage else None)]

    def chunk_object(self, chunk: _Chunk) -> JsonObject:
        choice = {"index": 0, "finish_reason": chunk.finish_reason, "logprobs": None, "delta": chunk.delta}
        return self.completion("chat.completion.chunk", choice, chunk.usage) | (chunk.extra or {})

    def event(self, chunk: _Chunk) -> bytes:
        if chunk.finish_reason is None and chunk.usage is None and chunk.extra is None:
            return self.before + _dumps(chunk.delta) + self.after
        return _event(self.chunk_object(chunk))

    def parts(self) -> list[bytes]:
        """The body's parts, events or slices; the last two bring its end."""
        if self.stream:
            return [*map(self.event, self.chunks()), _DONE]
        body = _dumps(self.reply())
        size = len(body) // _BODY_PARTS + 1
        return [body[at : at + size] for at in range(0, len(body), size)]

    def head(self, *headers: tuple[str, str]) -> _Head:
        return _Head(200, (*(_SSE if self.stream else _JSON), *headers))

    def opening(self, after: int) -> Iterator[_Step]:
        """The head and `after` parts, but never the end."""
        yield self.head()
        yield from (_Write(part, int(self.stream)) for part in self.parts()[:-2][:after])

    def send(self, events: Iterable[bytes], delay_s: float | None = None) -> Iterator[_Step]:
        """A stream of these events."""
        delay_s = self.emulator.chunk_delay_s if delay_s is None else delay_s
        yield _Head(200, _SSE)
        for at, event in enumerate(events):
            if at and delay_s:
                yield _Wait(delay_s)
            yield _Write(event, 1)

    def whole(self, *headers: tuple[str, str], delay_s: float | None = None) -> Iterator[_Step]:
        """The ordinary answer."""
        if self.stream:
            return self.send(self.parts(), delay_s)
        return _send_json(200, self.reply(), *headers)

    def edited(self, edit: Callable[[JsonObject], object], dumps: Callable[[Any], bytes] = _dumps) -> Iterator[_Step]:
        """The ordinary answer with every JSON object of it changed in place by `edit`."""
        objects = [self.chunk_object(chunk) for chunk in self.chunks()] if self.stream else [self.reply()]
        for value in objects:
            edit(value)
        if self.stream:
            return self.send([*(b"data: " + dumps(value) + b"\n\n" for value in objects), _DONE])
        return _send(200, dumps(objects[0]), *_JSON)

    def recoded(self, recode: Callable[[bytes], bytes]) -> Iterator[_Step]:
        """The ordinary stream with the bytes of every event changed."""
        return self.send(map(recode, self.parts()))


def _fragments(index: int, call: JsonObject) -> Iterator[JsonObject]:
    """A tool call as TensorZero streams it: id and name once, then null and empty beside pieces of the arguments."""
    arguments = call["function"]["arguments"]
    name = call["function"]["name"]
    yield {"id": call["id"], "index": index, "type": "function", "function": {"name": name, "arguments": ""}}
    for at in range(0, len(arguments), 6):
        function = {"name": "", "arguments": arguments[at : at + 6]}
        yield {"id": None, "index": index, "type": "function", "function": function}


def _uuid7() -> uuid.UUID:
    random = int.from_bytes(os.urandom(10))
    bits = time.time_ns() // 1_000_000 << 80 | random
    return uuid.UUID(int=bits & ~(0xF << 76) & ~(0x3 << 62) | 0x7 << 76 | 0x2 << 62)


# -- Scenarios: each one's name is its function's, its parameters are the keyword arguments, its help is the docstring


@dataclass(frozen=True)
class Scenario:
    """One way to answer: its help, its parameters with their defaults (which give the types too), and its steps."""

    help: str
    params: Mapping[str, int | float | str]
    run: Callable[..., Iterator[_Step]]


SCENARIOS: dict[str, Scenario] = {}
_SHADOWING = ("bytes", "type")  # parameters whose argument has an underscore, lest it shadow a builtin


def _scenario(run: Callable[..., Iterator[_Step]]) -> Callable[..., Iterator[_Step]]:
    arguments = inspect.signature(run).parameters.values()
    params = {each.name.rstrip("_"): each.default for each in arguments if each.kind is each.KEYWORD_ONLY}
    SCENARIOS[run.__name__.lstrip("_")] = Scenario(run.__doc__ or "", params, run)
    return run


def _stream_scenario(run: Callable[..., Iterator[_Step]]) -> None:
    """Register a scenario that has its way with streams alone; a unary call gets the ordinary answer."""
    _scenario(run)
    name = run.__name__.lstrip("_")
    SCENARIOS[name] = replace(
        SCENARIOS[name], run=lambda call, **values: run(call, **values) if call.stream else call.whole()
    )


def _alias(name: str, of: str, text: str, **changed: float | str) -> None:
    SCENARIOS[name] = Scenario(text, {**SCENARIOS[of].params, **changed}, SCENARIOS[of].run)


def _parse_scenario(text: str) -> tuple[str, dict[str, Any]]:
    """The name and parameters in `NAME?key=value&key=value`; ValueError says what is wrong with it."""
    name, _, query = text.partition("?")
    if name not in SCENARIOS:
        raise ValueError(f"scenario: expected one of {', '.join(sorted(SCENARIOS))}, found `{name[:64]}`")
    values: dict[str, Any] = dict(SCENARIOS[name].params)
    for key, value in urllib.parse.parse_qsl(query, keep_blank_values=True):
        if key not in values:
            raise ValueError(f"scenario {name}: expected a parameter among {', '.join(values)}, found `{key[:64]}`")
        try:
            values[key] = type(SCENARIOS[name].params[key])(value)
        except ValueError as error:
            raise ValueError(f"scenario {name}: {key}: expected a number, found `{value[:64]}`") from error
        if not isinstance(values[key], str) and not -1 <= values[key] <= SCENARIO_NUMBER_MAX:
            raise ValueError(f"scenario {name}: {key}: expected -1 to {SCENARIO_NUMBER_MAX}, found {value[:64]}")
    return name, values


@_scenario
def _plain(call: _Call) -> Iterator[_Step]:
    """The ordinary answer."""
    return call.whole()


@_scenario
def _mirror(call: _Call) -> Iterator[_Step]:
    """An answer whose content is the request's body, as it came over the wire."""
    call.answer = call.answer._replace(words=[call.received.decode()], tool_calls=[], finish_reason="stop")
    return call.whole()


@_scenario
def _slow(call: _Call, *, delay_s: float = 0.5, chunk_delay_s: float = 0.0) -> Iterator[_Step]:
    """Wait delay_s before the headers and chunk_delay_s before each later event."""
    yield _Wait(delay_s)
    yield from call.whole(delay_s=chunk_delay_s)


@_scenario
def _stall(call: _Call, *, after: int = 2, headers: int = 1) -> Iterator[_Step]:
    """Fall silent for ever after so many events; after=0 sends headers alone, headers=0 nothing."""
    if headers:
        yield from call.opening(after)
    yield _Wait(math.inf)


@_scenario
def _split(call: _Call, *, size: int = 1, delay_s: float = 0.0) -> Iterator[_Step]:
    """Write the body in pieces of size bytes, each its own HTTP chunk and TCP segment."""
    body = b"".join(call.parts())
    yield call.head()
    for at in range(0, len(body), max(size, 1)):
        end = at + max(size, 1)
        events = body.count(b"\n\n", max(at - 1, 0), end) if call.stream else 0
        yield _Write(body[at:end], events)
        yield _Wait(delay_s)


@_scenario
def _cut(call: _Call, *, after: int = 2) -> Iterator[_Step]:
    """End the body properly after so many events, without finish_reason and [DONE]."""
    return call.opening(after)


@_scenario
def _reset(call: _Call, *, after: int = 2) -> Iterator[_Step]:
    """Reset the connection (RST) after so many events; after=-1 before the headers."""
    if after >= 0:
        yield from call.opening(after)
    yield _Leave(reset=True)


@_scenario
def _half_chunk(call: _Call, *, after: int = 2) -> Iterator[_Step]:
    """Close the connection in the middle of an HTTP chunk, after so many events."""
    yield from call.opening(after)
    yield _Write(b'FF\r\ndata: {"id":', framed=False)
    yield _Leave(reset=False)


@_scenario
def _close(call: _Call, *, after: int = -1) -> Iterator[_Step]:
    """Close the connection without an answer, or after so many events, without the last HTTP chunk."""
    if after >= 0:
        yield from call.opening(after)
    yield _Leave(reset=False)


@_scenario
def _no_finish(call: _Call) -> Iterator[_Step]:
    """finish_reason is null to the end, then [DONE]: TensorZero after the loss of its provider."""
    return call.edited(lambda value: value["choices"][0].update(finish_reason=None))


@_stream_scenario
def _no_done(call: _Call) -> Iterator[_Step]:
    """The stream finishes, and the body ends without [DONE]."""
    return call.send(call.parts()[:-1])


@_stream_scenario
def _done_only(call: _Call) -> Iterator[_Step]:
    """A stream of [DONE] and nothing else."""
    return call.send([_DONE])


@_scenario
def _garbage(call: _Call, *, after: int = 2) -> Iterator[_Step]:
    """An event that is not JSON after so many events; a body that is not JSON."""
    event = b"data: {not json\n\n"
    return call.send(_inserted(call, after, event)) if call.stream else _send(200, b"{not json", *_JSON)


def _inserted(call: _Call, after: int, event: bytes) -> list[bytes]:
    parts = call.parts()
    return [*parts[:-2][:after], event, *parts[:-2][after:], *parts[-2:]]


@_scenario
def _error_event(
    call: _Call,
    *,
    after: int = 2,
    message: str = "the provider failed in mid-stream",
    status: int = 0,
    type_: str = "",
    code: str = "",
    named: int = 0,
    flat: int = 0,
    raw: int = 0,
) -> Iterator[_Step]:
    """An error event after so many events, then the rest; named=1 `event: error`, flat=1 text, raw=1 raw chunk."""
    error = _error_object(message, type_ or "server_error", code) | ({"status": status} if status else {})
    value: JsonObject = {"error": message if flat else error}
    if raw:
        value["ollm_raw_chunk"] = "{not json"
    if not call.stream:
        return _send_json(200, value)
    event = b"event: error\n" + _event(error) if named else _event(value)
    return call.send(_inserted(call, after, event))


def _error_object(message: str, type_: str, code: str, param: str = "") -> JsonObject:
    return {
        "message": message,
        "type": type_,
        "code": int(code) if code.isascii() and code.isdigit() else code or None,
        "param": param or None,
    }


_ENVELOPES: Mapping[str, Callable[[JsonObject], Any]] = {
    "full": lambda error: {"error": error},
    "bare": lambda error: {"error": {"message": error["message"]}},
    "flat": lambda error: {"error": error["message"]},
    "detail": lambda error: {"detail": error["message"]},
    "message": lambda error: {"message": error["message"]},
    "none": lambda _: {},
    "html": lambda error: f"<html><body><h1>{error['message']}</h1></body></html>",
    "empty": lambda _: "",
}


@_scenario
def _error(
    call: _Call,  # noqa: ARG001 - an error needs nothing of the call
    *,
    status: int = 500,
    envelope: str = "full",
    message: str = "the provider failed",
    type_: str = "",
    code: str = "",
    param: str = "",
    retry_after: str = "",
    retry_after_ms: str = "",
    retry_date_s: int = -1,
    size: int = 0,
    raw: int = 0,
) -> Iterator[_Step]:
    """An error status; envelope=full, bare, flat, detail, message, none, html, empty; size bytes of Chinese; raw=1."""
    text = "错" * (size // 3) if size else message
    error = _error_object(text, type_ or _error_type(status), code, param)
    if envelope not in _ENVELOPES:
        _refuse("envelope", ", ".join(_ENVELOPES), envelope)
    value = _ENVELOPES[envelope](error)
    if raw and isinstance(value, dict):
        value["ollm_raw_response"] = [{"provider_type": "emulator", "api_type": "chat_completions", "data": "{}"}]
    if retry_date_s >= 0:
        retry_after = formatdate(time.time() + retry_date_s, usegmt=True)
    waits = [("retry-after", retry_after), ("retry-after-ms", retry_after_ms)]
    kind = "text/html" if isinstance(value, str) else "application/json"
    body = value.encode() if isinstance(value, str) else _dumps(value)
    headers = [("content-type", kind)] if body else []
    return _send(status if 200 <= status <= 999 else 500, body, *headers, *(wait for wait in waits if wait[1]))


_alias("http_error", "error", "As `error`.")
_alias(
    "rate_limited",
    "error",
    "429 with Retry-After.",
    status=429,
    message="rate limit exceeded",
    code="rate_limit_exceeded",
    retry_after="1",
)
_alias("overloaded", "error", "503 with Retry-After.", status=503, message="the gateway is overloaded", retry_after="1")
_alias(
    "provider_failed",
    "error",
    "502 in TensorZero's words.",
    status=502,
    envelope="bare",
    message="All variants failed with errors: v1: All model providers failed to infer with errors: emulator: "
    "Error 429 Too Many Requests from openai client: slow down",
)


@_scenario
def _flaky(call: _Call, *, times: int = 1, status: int = 503, retry_after_ms: str = "") -> Iterator[_Step]:
    """The same body is refused so many times in a row with the status, then answered; and so on from the start."""
    refusals = call.emulator.refusals
    refused = refusals.pop(call.received, 0)
    if refused >= times:
        return call.whole()
    refusals[call.received] = refused + 1
    while len(refusals) > REFUSALS_MAX:
        refusals.popitem(last=False)
    return _error(call, status=status, message="try again", retry_after_ms=retry_after_ms)


@_stream_scenario
def _comments(call: _Call, *, every: float = 0.01, count: int = 2) -> Iterator[_Step]:
    """Keep-alive comments before the first event and between events: count of them, every so many seconds."""
    yield call.head()
    for part in call.parts():
        for _ in range(count):
            yield _Write(b":\n\n")
            yield _Wait(every)
        yield _Write(part, 1)


@_scenario
def _huge_event(call: _Call, *, size: int = 1_000_000) -> Iterator[_Step]:
    """One delta, or the message, with a content of size bytes."""
    return call.edited(lambda value: _set_content(value, "x" * size))


_alias("big", "huge_event", "A unary answer of size bytes.", size=10_000_000)


def _set_content(value: JsonObject, content: str) -> None:
    """Set the content of a message, or of a stream's first chunk."""
    choice = value["choices"][0]
    if "message" in choice:
        choice["message"]["content"] = content
    elif "role" in choice["delta"]:
        choice["delta"]["content"] = content


@_stream_scenario
def _many(call: _Call, *, chunks: int = 10_000, bytes_: int = 100) -> Iterator[_Step]:
    """A stream of so many chunks with so many bytes of content, as fast as the peer reads."""
    event = call.event(_Chunk({"content": "x" * bytes_}))
    first, *_, last = call.chunks()
    body = itertools.repeat(event, chunks)
    return call.send(itertools.chain([call.event(first)], body, [call.event(last), _DONE]))


@_stream_scenario
def _pace(call: _Call, *, chunks: int = 50, interval_ms: float = 10.0) -> Iterator[_Step]:
    """A chunk every interval_ms by the clock, without drift; its content is `DUE SENT`, both time.monotonic_ns()."""
    first, *_, last = call.chunks()
    yield call.head()
    yield _Write(call.event(first), 1)
    start = time.monotonic_ns()
    for number in range(1, chunks + 1):
        due = start + round(number * interval_ms * 1e6)
        yield _Wait(max(0.0, (due - time.monotonic_ns()) / 1e9))
        yield _Write(call.event(_Chunk({"content": f"{due} {time.monotonic_ns()} "})), 1)
    yield _Write(call.event(last), 1)
    yield _Write(_DONE, 1)


@_stream_scenario
def _crlf(call: _Call) -> Iterator[_Step]:
    """Events with CRLF line ends."""
    return call.recoded(lambda event: event.replace(b"\n", b"\r\n"))


@_stream_scenario
def _cr(call: _Call) -> Iterator[_Step]:
    """Events with CR line ends."""
    return call.recoded(lambda event: event.replace(b"\n", b"\r"))


@_stream_scenario
def _bom(call: _Call) -> Iterator[_Step]:
    """A byte order mark before the first event."""
    first, *others = call.parts()
    return call.send([b"\xef\xbb\xbf" + first, *others])


@_stream_scenario
def _multiline(call: _Call) -> Iterator[_Step]:
    """Each event's JSON on many `data:` lines, without a space after the colon."""
    texts = [json.dumps(call.chunk_object(chunk), indent=0, ensure_ascii=False) for chunk in call.chunks()]
    events = ["".join(f"data:{line}\n" for line in text.split("\n")) + "\n" for text in texts]
    return call.send([*(event.encode() for event in events), b"data:[DONE]\n\n"])


@_stream_scenario
def _usage_chunk(call: _Call) -> Iterator[_Step]:
    """Usage on a chunk of its own with no choices, as OpenAI and older gateways send it."""
    *chunks, last = call.chunks()
    events = [*map(call.event, chunks), call.event(last._replace(usage=None))]
    if last.usage is not None:
        events.append(_event(call.chunk_object(last) | {"choices": []}))
    return call.send([*events, _DONE])


@_scenario
def _reasoning(call: _Call, *, key: str = "reasoning_content", text: str = "Let me think about it.") -> Iterator[_Step]:
    """Reasoning before the answer, in delta and message under the key."""
    if not call.stream:
        return call.edited(lambda value: value["choices"][0]["message"].update({key: text}))
    first, *others = call.chunks()
    thoughts = [_Chunk({key: word}) for word in re.findall(r"\s*\S+", text)]
    return call.send([*map(call.event, [first, *thoughts, *others]), _DONE])


@_scenario
def _logprobs(call: _Call) -> Iterator[_Step]:
    """Log probabilities in every choice with content."""

    def edit(value: JsonObject) -> None:
        choice = value["choices"][0]
        content = (choice.get("message") or choice.get("delta") or {}).get("content")
        if content:
            token = {"token": content, "logprob": -0.25, "bytes": [*content.encode()], "top_logprobs": []}
            choice["logprobs"] = {"content": [token], "refusal": None}

    return call.edited(edit)


_UNKNOWN = (
    b'"x_big":9007199254740993,"x_price":1.10,"x_exponent":1e2,"x_null":null,'
    b'"x_nested":{"z":[1.0,null,{"b":-0,"a":"\\u00e9"}],"a":true}'
)


@_scenario
def _unknown_fields(call: _Call) -> Iterator[_Step]:
    """Keys that nobody models at every level, with numbers whose spelling matters."""
    return call.edited(
        lambda value: _each_object(value, lambda inner: inner.update({"@": 0})),
        lambda value: _dumps(value).replace(b'"@":0', _UNKNOWN),
    )


def _each_object(value: Any, edit: Callable[[JsonObject], None]) -> None:
    """Edit the JSON objects in a value in place, itself last."""
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _each_object(inner, edit)
    if isinstance(value, dict):
        edit(value)


_MISFITS: Mapping[str, Any] = {
    "id": 12,
    "created": "soon",
    "model": ["a", "b"],
    "system_fingerprint": {"b": 1, "a": 2},
    "service_tier": 7,
    "role": False,
    "prompt_tokens": "two",
    "completion_tokens": 1.5,
    "total_tokens": 2**70,
}


@_scenario
def _misfit(call: _Call) -> Iterator[_Step]:
    """Values of a wrong type in modelled keys; content and finish_reason stay good."""
    return call.edited(
        lambda value: _each_object(
            value, lambda inner: inner.update({key: _MISFITS[key] for key in inner.keys() & _MISFITS.keys()})
        )
    )


@_scenario
def _surrogate(call: _Call) -> Iterator[_Step]:
    """An emoji cut in two inside its escape: a lone surrogate in each of two deltas."""
    if not call.stream:
        return call.edited(
            lambda value: _set_content(value, "cut \ud83d"), lambda value: json.dumps(value).encode("ascii")
        )
    halves = [
        call.before + json.dumps({"content": half}).encode("ascii") + call.after
        for half in ("cut \ud83d", "\ude00 whole")
    ]
    first, *others = call.parts()
    return call.send([first, *halves, *others])


@_scenario
def _two_choices(call: _Call) -> Iterator[_Step]:
    """A second choice beside the first, in every chunk."""
    return call.edited(lambda value: value["choices"].append({**value["choices"][0], "index": 1}))


@_scenario
def _not_json(call: _Call, *, status: int = 200) -> Iterator[_Step]:  # noqa: ARG001 - as for an error
    """200 with an HTML page."""
    return _send(status, b"<html><body>Welcome to the proxy</body></html>", ("content-type", "text/html"))


@_scenario
def _wrong_type(call: _Call, *, in_200: int = 0) -> Iterator[_Step]:
    """200 application/json though a stream was asked for; in_200=1 has an error in it."""
    error = {"error": _error_object("the provider failed", "server_error", "provider_failed")}
    return _send_json(200, error if in_200 else call.reply())


@_scenario
def _not_object(call: _Call) -> Iterator[_Step]:
    """JSON that is no object: the body, or an event."""
    return call.send([_event([1, 2]), _DONE]) if call.stream else _send_json(200, [1, 2])


@_scenario
def _no_choices(call: _Call) -> Iterator[_Step]:
    """Objects without `choices`."""
    return call.edited(lambda value: value.pop("choices"))


@_scenario
def _redirect(call: _Call, *, status: int = 307, location: str = "/elsewhere") -> Iterator[_Step]:  # noqa: ARG001
    """A redirect; following it shows as an exchange with another path."""
    return _send(status, b"", ("location", location))


@_scenario
def _gzip(call: _Call, *, bomb: int = 0) -> Iterator[_Step]:
    """A body in gzip though nobody asked; bomb=1 makes 200 MB of zeros out of it."""
    yield call.head(("content-encoding", "gzip"))
    packer = zlib.compressobj(wbits=31)
    parts: Iterable[bytes] = itertools.repeat(bytes(1_000_000), 200) if bomb else call.parts()
    for part in parts:
        data = packer.compress(part) + packer.flush(zlib.Z_SYNC_FLUSH)
        yield _Write(data, int(call.stream and not bomb))
    yield _Write(packer.flush())


@_scenario
def _header_flood(call: _Call, *, count: int = 200, size: int = 100) -> Iterator[_Step]:
    """So many headers of so many bytes before the ordinary answer; count=1 makes one long header."""
    yield call.head(*((f"x-flood-{number}", "x" * size) for number in range(count)))
    yield from (_Write(part, int(call.stream)) for part in call.parts())


def _refuse_connects(call: _Call, *, connects: int = 1) -> Iterator[_Step]:
    """This answer is ordinary; the next so many connections are reset as soon as they open."""
    call.emulator.resets_due = connects
    return call.whole()


SCENARIOS["refuse"] = Scenario(_refuse_connects.__doc__ or "", {"connects": 1}, _refuse_connects)


# -- The routes


def _complete(emulator: Emulator, exchange: Exchange, _query: str) -> Iterator[_Step]:
    """`POST /v1/chat/completions`."""
    _authenticate(emulator, exchange)
    body = exchange.json = _parse_body(exchange.body)
    _check_body(body)
    exchange.tags = _tags(body, exchange.headers)
    model, scenario = _select(emulator, body)
    try:
        name, values = _parse_scenario(scenario or emulator.scenario or "plain")
    except ValueError as error:
        raise _RefusedError(404, str(error), code="model_not_found", param="model") from error
    exchange.billed = not body.get("ollm::dryrun")
    call = _Call(emulator, exchange, body, model, cached=_cached(emulator, body))
    if name == "refuse" and not scenario:
        return call.whole()
    return SCENARIOS[name].run(call, **{key + "_" * (key in _SHADOWING): value for key, value in values.items()})


def _authenticate(emulator: Emulator, exchange: Exchange) -> None:
    """Refuse a bad key as the dev gateway does; without a key of its own the emulator is the prod gateway, and open."""
    if emulator.api_key is None:
        return
    header = exchange.headers.get("authorization")
    if header is None:
        raise _RefusedError(401, "Authorization header is required")
    if not header.startswith("Bearer "):
        raise _RefusedError(401, "Authorization header must start with 'Bearer '")
    if not hmac.compare_digest(header.removeprefix("Bearer ").encode(), emulator.api_key.encode()):
        raise _RefusedError(401, "the API key does not exist", code="invalid_api_key")


def _tags(body: JsonObject, headers: Mapping[str, str]) -> dict[str, str]:
    tags = dict(body.get("ollm::tags") or {})
    if tags.get("source") == "playground":
        del tags["source"]
        tags["playground"] = "true"
    return tags or ({"user_agent": headers["user-agent"]} if "user-agent" in headers else {})


_FUNCTION_PREFIX, _MODEL_PREFIX, _SCENARIO_PREFIX = "ollm::function_name::", "ollm::model_name::", "scenario::"


def _select(emulator: Emulator, body: JsonObject) -> tuple[str, str]:
    """The model as the answer names it, and the scenario that its name asks for."""
    selector, variant = body["model"], body.get("ollm::variant_name")
    name = selector.removeprefix(_FUNCTION_PREFIX).removeprefix(_MODEL_PREFIX)
    scenario = name.removeprefix(_SCENARIO_PREFIX) if name.startswith(_SCENARIO_PREFIX) else ""
    if not name:
        raise _RefusedError(400, "model: expected a name", param="model")
    if selector.startswith(_FUNCTION_PREFIX):
        variants = SCENARIO_VARIANTS if scenario else FUNCTIONS.get(name)
        if variants is None:
            raise _RefusedError(404, f"Unknown function: {name}", code="function_not_found", param="model")
        if variant is not None and variant not in variants:
            message = f"Unknown variant: {variant}"
            raise _RefusedError(404, message, code="variant_not_found", param="ollm::variant_name")
        return f"{selector}::variant_name::{variant or variants[0]}", scenario
    if variant is not None:
        raise _RefusedError(400, "ollm::variant_name: expected a function as the model", param="ollm::variant_name")
    if not scenario and name not in emulator.models:
        raise _RefusedError(404, f"Unknown model: {name}", code="model_not_found", param="model")
    return f"{_MODEL_PREFIX}{name}", scenario


_UNCACHED = ("stream", "stream_options", *(key for key in _FIELDS if key.startswith("ollm::")))
_DRYRUN_MODES = {"on": "read_only", "write_only": "off"}


def _cached(emulator: Emulator, body: JsonObject) -> bool:
    """Whether the answer is in the cache; it is put there if the mode says so."""
    options = body.get("ollm::cache_options") or {}
    mode = options.get("enabled", "off")
    if body.get("ollm::dryrun"):
        mode = _DRYRUN_MODES.get(mode, mode)
    key = json.dumps({name: value for name, value in body.items() if name not in _UNCACHED}, sort_keys=True)
    now, age_s = time.monotonic(), options.get("max_age_s")
    written_at = emulator.cache.get(key)
    hit = mode in ("on", "read_only") and written_at is not None and (age_s is None or now - written_at <= age_s)
    if hit:
        emulator.cache.move_to_end(key)
    elif mode in ("on", "write_only"):
        emulator.cache[key] = now
        while len(emulator.cache) > CACHE_ENTRIES_MAX:
            emulator.cache.popitem(last=False)
    return hit


def _list_models(emulator: Emulator, exchange: Exchange, _query: str) -> Iterator[_Step]:
    """`GET /v1/models`."""
    _authenticate(emulator, exchange)
    models = [{"id": name, "object": "model", "created": 0, "owned_by": "emulator"} for name in emulator.models]
    return _send_json(200, {"object": "list", "data": models})


def _list_exchanges(emulator: Emulator, _exchange: Exchange, query: str) -> Iterator[_Step]:
    """`GET /_emulator/exchanges`, with `?last=N` the newest alone."""
    last = dict(urllib.parse.parse_qsl(query)).get("last", "")
    count = int(last) if last.isascii() and last.isdigit() else EXCHANGES_MAX
    kept = emulator.exchanges[max(0, len(emulator.exchanges) - count) :]
    return _send_json(200, [exchange.record() for exchange in kept])


_ROUTES: Mapping[str, Mapping[str, Callable[[Emulator, Exchange, str], Iterator[_Step]]]] = {
    "/v1/chat/completions": {"POST": _complete},
    "/v1/models": {"GET": _list_models},
    "/health": {"GET": lambda *_: _send_json(200, {"status": "ok"})},
    "/_emulator/exchanges": {"GET": _list_exchanges},
}
