"""The two RPCs, on their main path. All that can go wrong is a BridgeError, which the boundary turns into a status."""

from collections.abc import Awaitable, Callable
from typing import TypeAlias

from bridge.core.chat import ChatStream, decode, encode, selected
from bridge.core.errors import BridgeError
from bridge.settings import UpstreamSettings
from bridge.upstream import Call, Upstream
from ollmbridge.v1.chat_completion_service_pb2 import (
    CreateChatCompletionRequest,
    CreateChatCompletionResponse,
    StreamChatCompletionResponse,
)

__all__ = ["ChatCompletionService", "Write"]

Write: TypeAlias = Callable[[StreamChatCompletionResponse], Awaitable[None]]
"""Gives a chunk to the caller; waits while flow control holds it back."""


class ChatCompletionService:
    """ollmbridge.v1.ChatCompletionService, between a message and the upstream."""

    def __init__(self, upstream: Upstream, settings: UpstreamSettings) -> None:
        self._upstream = upstream
        self._settings = settings

    async def CreateChatCompletion(
        self, request: CreateChatCompletionRequest, call: Call
    ) -> CreateChatCompletionResponse:
        """Give the whole completion."""
        call.resource = selected(request)
        body = await self._upstream.complete(encode(request, stream=False), call)
        reply = decode(body, content_type=call.content_type, resource=call.resource, own_key=self._upstream.own_key)
        call.usage = reply.usage if reply.HasField("usage") else None
        return reply

    async def StreamChatCompletion(self, request: CreateChatCompletionRequest, call: Call, write: Write) -> None:
        """Write the chunks as they come; return only where the completion is whole."""
        call.resource = selected(request)
        stream = ChatStream(
            event_bytes_max=self._settings.event_bytes_max,
            require_finish_reason=self._settings.require_finish_reason,
            resource=call.resource,
            own_key=self._upstream.own_key,
        )
        broken = None
        async with self._upstream.stream(encode(request, stream=True), call) as pieces:
            try:
                async for piece in pieces:
                    for chunk in stream.feed(piece):
                        await write(chunk)
                    if stream.done:
                        break
            except BridgeError as error:
                broken = error
            finally:
                call.chunks, call.usage = stream.chunks, stream.usage
            stream.close(broken)
