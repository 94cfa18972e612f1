"""The two RPCs, on their main path. All that can go wrong is a BridgeError, which the boundary turns into a status."""

import time
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from bridge.core.chat import ChatStream, decode, encode, selected
from bridge.core.errors import BridgeError
from bridge.settings import UpstreamSettings
from bridge.upstream.call import UpstreamCall
from bridge.upstream.client import Upstream
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
        self, request: CreateChatCompletionRequest, call: UpstreamCall
    ) -> CreateChatCompletionResponse:
        """Give the whole completion."""
        call.resource = selected(request)
        began_at = time.perf_counter()
        body = encode(request, stream=False, tags=call.tags)
        call.translation_s = time.perf_counter() - began_at
        answer = await self._upstream.complete(body, call)
        began_at = time.perf_counter()
        reply = decode(
            answer,
            http_status=call.http_status or 200,
            content_type=call.content_type,
            resource=call.resource,
            own_key=self._upstream.own_key,
        )
        call.translation_s += time.perf_counter() - began_at
        call.usage = reply.usage if reply.HasField("usage") else None
        return reply

    async def StreamChatCompletion(
        self, request: CreateChatCompletionRequest, call: UpstreamCall, write: Write
    ) -> None:
        """Write the chunks as they come; return only where the completion is whole."""
        call.resource = selected(request)
        stream = ChatStream(
            event_bytes_max=self._settings.event_bytes_max,
            require_finish_reason=self._settings.require_finish_reason,
            resource=call.resource,
            own_key=self._upstream.own_key,
        )
        broken = None
        began_at = time.perf_counter()
        body = encode(request, stream=True, tags=call.tags)
        call.translation_s = time.perf_counter() - began_at
        async with self._upstream.stream(body, call) as pieces:
            try:
                async for piece in pieces:
                    began_at = time.perf_counter()
                    for chunk in stream.feed(piece):
                        call.translation_s += time.perf_counter() - began_at
                        await write(chunk)
                        began_at = time.perf_counter()
                    call.translation_s += time.perf_counter() - began_at
                    if stream.done:
                        break
            except BridgeError as error:
                broken = error
            finally:
                call.chunks, call.usage = stream.chunks, stream.usage
            stream.close(broken or pieces.failure)
