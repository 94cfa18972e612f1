"""Two ways to call a real server: through a bridge, with a stock gRPC client, and directly over HTTP.

Both send the same request: short, temperature 0 and seeded, unless the fields say otherwise. A field that is None is
not sent.
"""

import json
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Self

import grpc
import httpx2

from bridge.server.server import run_server
from bridge.settings import load
from ollmbridge.v1.chat_completion_service_pb2 import (
    CreateChatCompletionRequest,
    CreateChatCompletionResponse,
    StreamChatCompletionResponse,
)
from ollmbridge.v1.chat_completion_service_pb2_grpc import ChatCompletionServiceStub
from ollmbridge.v1.chat_pb2 import ChatMessage, Choice, ToolCall
from tests.kit.client import Failure, decode_failure
from tests.kit.oracle import split_events

__all__ = [
    "PROMPT",
    "Caller",
    "HttpClient",
    "bridge",
    "http_client",
    "join_chunks",
    "offer_tool",
    "open_caller",
    "start_caller",
    "text",
]

PROMPT = "Say hello."
DEFAULTS = {"model": "near_qwen3_30b", "max_tokens": 4, "temperature": 0, "seed": 1}


# Through a bridge


@asynccontextmanager
async def start_caller(
    upstream_url: str, *, key: str | None = None, service_config: dict[str, Any] | None = None, **upstream: Any
) -> AsyncIterator["Caller"]:
    """Start a bridge of its own and yield a caller of it, with this key."""
    async with (
        bridge(upstream_url, **upstream) as address,
        open_caller(address, service_config=service_config) as caller,
    ):
        yield caller.with_key(key)


def bridge(upstream_url: str, **upstream: Any) -> AbstractAsyncContextManager[str]:
    """Run a bridge in front of the upstream, with these settings of `upstream`, in this loop. Yields its address."""
    flags = {"listen": "127.0.0.1:0", "drain_grace_s": 0, "upstream": {"base_url": upstream_url, **upstream}}
    return run_server(load(environ={}, flags=flags).settings)


@asynccontextmanager
async def open_caller(address: str, *, service_config: dict[str, Any] | None = None) -> AsyncIterator["Caller"]:
    options: list[tuple[str, Any]] = [("grpc.enable_http_proxy", 0)]
    if service_config is not None:
        options.append(("grpc.service_config", json.dumps(service_config)))
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        yield Caller(ChatCompletionServiceStub(channel), channel)


@dataclass(frozen=True)
class Caller:
    """A stock client: the generated stub over a channel."""

    stub: Any
    channel: grpc.aio.Channel
    metadata: Sequence[tuple[str, str]] = ()

    def with_key(self, key: str | None) -> Self:
        return self.with_authorization(None if key is None else f"Bearer {key}")

    def with_authorization(self, value: str | None) -> Self:
        return replace(self, metadata=[] if value is None else [("authorization", value)])

    def unary(self, *, timeout_s: float | None = None, **fields: Any) -> Any:
        """Start CreateChatCompletion. Await it for the reply."""
        return self.stub.CreateChatCompletion(_request(fields), metadata=self.metadata, timeout=timeout_s)

    def stream(self, *, timeout_s: float | None = None, **fields: Any) -> Any:
        """Start StreamChatCompletion. Iterate it for the chunks."""
        return self.stub.StreamChatCompletion(_request(fields), metadata=self.metadata, timeout=timeout_s)

    async def reply(self, *, stream: bool, **fields: Any) -> CreateChatCompletionResponse:
        """Return the completion, unary or streamed."""
        return join_chunks([chunk async for chunk in self.stream(**fields)]) if stream else await self.unary(**fields)

    async def failure(self, *, stream: bool, **fields: Any) -> Failure:
        """Return the status of a call that must not end in OK."""
        chunks = []
        try:
            if stream:
                async for chunk in self.stream(**fields):
                    chunks.append(chunk)  # noqa: PERF401 - those before the error count
            else:
                chunks.append(await self.unary(**fields))
        except grpc.aio.AioRpcError as error:
            return decode_failure(error, chunks)
        raise AssertionError(f"the call ended in OK, with {chunks}")


def _request(fields: dict[str, Any]) -> CreateChatCompletionRequest:
    given = {**DEFAULTS, "messages": [ChatMessage(role="user", text=PROMPT)], **fields}
    return CreateChatCompletionRequest(**{name: value for name, value in given.items() if value is not None})


def join_chunks(chunks: Iterable[StreamChatCompletionResponse]) -> CreateChatCompletionResponse:
    """Join a stream as the protos require: append text, join tool calls by index, overwrite no id."""
    reply = CreateChatCompletionResponse(object="chat.completion")
    choices: dict[int, Choice] = {}
    for chunk in chunks:
        assert (chunk.object, chunk.id) == ("chat.completion.chunk", reply.id or chunk.id)
        reply.id, reply.created, reply.model = chunk.id, chunk.created, chunk.model
        for name in ("episode_id", "system_fingerprint"):
            if chunk.HasField(name):
                setattr(reply, name, getattr(chunk, name))
        if chunk.HasField("usage"):
            reply.usage.CopyFrom(chunk.usage)
        for gained in chunk.choices:
            choice = choices.setdefault(gained.index, Choice(index=gained.index))
            _append(choice.message, gained.delta)
            if gained.HasField("finish_reason"):
                choice.finish_reason = gained.finish_reason
    reply.choices.extend(choices[index] for index in sorted(choices))
    return reply


def _append(message: ChatMessage, delta: Any) -> None:
    message.role = delta.role or message.role
    if delta.HasField("content"):
        message.text += delta.content
    for fragment in delta.tool_calls:
        while len(message.tool_calls) <= fragment.index:
            message.tool_calls.add()
        call: ToolCall = message.tool_calls[fragment.index]
        call.id = fragment.id or call.id
        call.type = fragment.type or call.type
        call.function.name = fragment.function.name or call.function.name
        call.function.arguments += fragment.function.arguments


def text(reply: CreateChatCompletionResponse) -> str:
    """Return the text of a reply with one choice."""
    [choice] = reply.choices
    return choice.message.text


def offer_tool(name: str) -> dict[str, Any]:
    """Return a tool of this name with the argument `city`, as a field of `tools`."""
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    return {"function": {"name": name, "parameters_json": json.dumps(schema)}}


# Directly


@asynccontextmanager
async def http_client(*, key: str | None = None) -> AsyncIterator["HttpClient"]:
    # llama-server closes the connection after a streamed reply, though it says Keep-Alive.
    limits = httpx2.Limits(max_keepalive_connections=0)
    async with httpx2.AsyncClient(trust_env=False, verify=False, timeout=30, limits=limits) as http:
        yield HttpClient(http, {} if key is None else {"authorization": f"Bearer {key}"})


@dataclass(frozen=True)
class HttpClient:
    """POST /v1/chat/completions."""

    http: httpx2.AsyncClient
    headers: dict[str, str] = field(default_factory=dict)

    async def unary(self, url: str, **fields: Any) -> httpx2.Response:
        return await self.http.send(self._request(url, fields))

    async def events(self, url: str, **fields: Any) -> AsyncIterator[Any]:
        """Yield the data events as they come: parsed, or the text if it is not JSON."""
        response = await self.http.send(self._request(url, {"stream": True, **fields}), stream=True)
        try:
            assert response.status_code == 200, await response.aread()
            assert response.headers["content-type"].startswith("text/event-stream")
            received, count = b"", 0
            async for piece in response.aiter_bytes():
                received += piece
                events = split_events(received)
                for _, data in events[count:]:
                    yield _parse_event(data)
                count = len(events)
        finally:
            await response.aclose()

    async def stream(self, url: str, **fields: Any) -> list[Any]:
        return [event async for event in self.events(url, **fields)]

    def _request(self, url: str, fields: dict[str, Any]) -> httpx2.Request:
        body = {**DEFAULTS, "messages": [{"role": "user", "content": PROMPT}], **fields}
        body = {name: value for name, value in body.items() if value is not None}
        return self.http.build_request("POST", f"{url}/v1/chat/completions", json=body, headers=self.headers)


def _parse_event(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data.decode("utf-8", "replace")
