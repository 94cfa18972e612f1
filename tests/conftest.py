"""A bridge between a stock grpc.aio client and the emulated gateway: real sockets, one process.

Most tests use `bridge` (or `start_bridge(…)`, for other settings than the defaults), `emulator`, a request by `chat`
or `scenario`, and `Bridge.ask`, which makes a call and returns all that came of it.
"""

import asyncio
import contextlib
import os
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as rpc_pb2
from grpc_status import rpc_status

from bridge.emulator import Emulator
from bridge.server.server import run_server
from bridge.settings import Settings
from bridge.telemetry import CallRecord, Observer
from ollmbridge.v1 import error_details_pb2 as details_pb2
from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionRequest
from ollmbridge.v1.chat_completion_service_pb2_grpc import ChatCompletionServiceStub
from ollmbridge.v1.chat_pb2 import ChatMessage

WAIT_S = 30.0
"""How long a test waits for a fact before it fails: far beyond what a busy machine takes."""

DETAILS = (
    *(getattr(rpc_pb2, name) for name in ("ErrorInfo", "RetryInfo", "BadRequest", "QuotaFailure", "RequestInfo")),
    rpc_pb2.ResourceInfo,
    details_pb2.UpstreamError,
)


class Failure(NamedTuple):
    """A status that is not OK, decoded. `details` are by message name, such as `details["RetryInfo"]`."""

    code: str
    message: str
    details: dict[str, Message]
    trailers: dict[str, Any]

    @property
    def reason(self) -> str:
        return self.info.reason

    @property
    def info(self) -> rpc_pb2.ErrorInfo:
        return self.details["ErrorInfo"]

    @property
    def upstream(self) -> details_pb2.UpstreamError:
        return self.details["UpstreamError"]


def decode_failure(error: grpc.aio.AioRpcError) -> Failure:
    """Return a failed call's status. Details must be of known types, and the status the same in both its forms."""
    details = {}
    status = rpc_status.from_call(error)
    for packed in status.details if status else ():
        kind = next(kind for kind in DETAILS if packed.Is(kind.DESCRIPTOR))
        details[kind.DESCRIPTOR.name] = detail = kind()
        assert packed.Unpack(detail)
    return Failure(error.code().name, error.details(), details, dict(error.trailing_metadata()))


class Answer(NamedTuple):
    """All that came of a call: messages, metadata, and the failure that it ended with, if it did not end with OK."""

    messages: list[Any]
    initial: dict[str, Any]
    trailers: dict[str, Any]
    failure: Failure | None

    @property
    def reply(self) -> Any:
        """The one message of a unary call that ended with OK."""
        assert self.failure is None, self.failure
        return self.messages[0]

    @property
    def chunks(self) -> list[Any]:
        """The messages of a stream that ended with OK."""
        assert self.failure is None, self.failure
        return self.messages

    @property
    def text(self) -> str:
        """The content of the first choice, unary or streamed."""
        choices = [choice for message in self.messages for choice in message.choices if choice.index == 0]
        return "".join(choice.delta.content if hasattr(choice, "delta") else choice.message.text for choice in choices)


class Records(Observer):
    """An observer that keeps the records."""

    def __init__(self) -> None:
        self.all: list[CallRecord] = []
        self._pending: asyncio.Queue[CallRecord] = asyncio.Queue()

    def end(self, record: CallRecord) -> None:
        self.all.append(record)
        self._pending.put_nowait(record)

    async def next(self) -> CallRecord:
        """Wait for the oldest record that has not been returned yet."""
        async with asyncio.timeout(WAIT_S):
            return await self._pending.get()


@dataclass(eq=False)
class Bridge:
    """A running bridge and a client of it."""

    address: str
    channel: grpc.aio.Channel
    records: Records = field(default_factory=Records)

    @property
    def stub(self) -> ChatCompletionServiceStub:
        return ChatCompletionServiceStub(self.channel)

    async def ask(self, request: CreateChatCompletionRequest, *, stream: bool = False, **options: Any) -> Answer:
        """Make a call and wait for its end. `options` are the stub's: metadata, timeout and so on."""
        messages = []
        try:
            if stream:
                call = self.stub.StreamChatCompletion(request, **options)
                async for chunk in call:
                    messages.append(chunk)  # noqa: PERF401 - what came before a failure counts
            else:
                call = self.stub.CreateChatCompletion(request, **options)
                messages.append(await call)
        except grpc.aio.AioRpcError as error:
            return Answer(
                messages, dict(error.initial_metadata() or ()), dict(error.trailing_metadata()), decode_failure(error)
            )
        return Answer(messages, dict(await call.initial_metadata()), dict(await call.trailing_metadata()), None)


def chat(content: str = "hello there", model: str = "echo", **fields: Any) -> CreateChatCompletionRequest:
    """Return a request of one user message."""
    messages = fields.pop("messages", [ChatMessage(role="user", text=content)])
    return CreateChatCompletionRequest(model=model, messages=messages, **fields)


def scenario(text: str, **fields: Any) -> CreateChatCompletionRequest:
    """Return a request that meets one of the emulator's scenarios, `NAME?key=value&key=value`."""
    return chat(model=f"scenario::{text}", **fields)


@dataclass(eq=False)
class FixedUpstream:
    """An upstream that answers with fixed bytes. `requests` are the heads and bodies that it received."""

    answers: tuple[bytes, ...]
    url: str = ""
    requests: list[bytes] = field(default_factory=list)
    transports: set[asyncio.Transport] = field(default_factory=set)


class _FixedConnection(asyncio.Protocol):
    def __init__(self, upstream: FixedUpstream) -> None:
        self.upstream = upstream
        self.data = b""

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.upstream.transports.add(transport)

    def data_received(self, data: bytes) -> None:
        self.data += data
        head, end, body = self.data.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        if end and len(body) == int(length[1] if length else 0):
            upstream = self.upstream
            upstream.requests.append(self.data)
            self.transport.write(upstream.answers[min(len(upstream.requests), len(upstream.answers)) - 1])
            self.transport.write_eof()

    def connection_lost(self, _error) -> None:
        self.upstream.transports.discard(self.transport)


@contextlib.asynccontextmanager
async def serve_answers(*answers: bytes) -> AsyncIterator[FixedUpstream]:
    """Answer requests with these bytes in turn, the last one again and again; close each connection after one."""
    upstream = FixedUpstream(answers)
    server = await asyncio.get_running_loop().create_server(lambda: _FixedConnection(upstream), "127.0.0.1", 0)
    upstream.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield upstream
        for transport in upstream.transports:
            transport.abort()
        await eventually(lambda: not upstream.transports)


async def eventually(fact: Callable[[], Any], timeout_s: float = WAIT_S) -> None:
    """Wait until a fact holds that nothing announces; the bound only guards against hanging."""
    async with asyncio.timeout(timeout_s):
        while not fact():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def find_free_port() -> int:
    """Return a port that was free a moment ago: for a server that can't choose one itself, or for no server at all."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def clean_environment() -> dict[str, str]:
    """Return the environment without settings of the bridge, for a process of its own."""
    return {name: value for name, value in os.environ.items() if not name.startswith("OLLM_BRIDGE_")}


StartBridge = Callable[..., Awaitable[Bridge]]


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    async with Emulator() as emulator:
        yield emulator


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-attacks", action="store_true", help="run every attack of tests/e2e/test_containment.py")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "all_attacks: run only with --all-attacks")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--all-attacks"):
        return
    deselected = [item for item in items if item.get_closest_marker("all_attacks")]
    config.hook.pytest_deselected(items=deselected)
    items[:] = [item for item in items if not item.get_closest_marker("all_attacks")]


@pytest.fixture
def upstream_engine() -> str:
    """Return which HTTP engine a bridge uses; tests that concern the upstream override it to run on both."""
    return "native"


@pytest.fixture
async def start_bridge(emulator: Emulator, upstream_engine: str) -> AsyncIterator[StartBridge]:
    """Start a bridge in front of the emulator: `await start_bridge(calls_max=1, upstream={"idle_timeout_s": 1})`."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(*, channel: dict[str, Any] | None = None, **settings: Any) -> Bridge:
            upstream = {"base_url": emulator.url, "engine": upstream_engine} | settings.pop("upstream", {})
            defaults = {"listen": "127.0.0.1:0", "drain_grace_s": 0}
            records = Records()
            address = await stack.enter_async_context(
                run_server(Settings(**defaults | settings, upstream=upstream), [records], stop_hold_s=0)
            )
            options = tuple((channel or {}).items())
            client = await stack.enter_async_context(grpc.aio.insecure_channel(address, options=options))
            return Bridge(address, client, records)

        yield start


@pytest.fixture
async def bridge(start_bridge: StartBridge) -> Bridge:
    return await start_bridge()
