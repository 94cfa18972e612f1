"""The two RPCs on their main path. All that can go wrong is a BridgeError, which the boundary turns into a status."""

from collections.abc import AsyncGenerator

from bridge.core.chat import ChatStream, decode_reply, encode_request
from bridge.server.call import RpcCall
from bridge.settings import UpstreamSettings
from bridge.upstream.client import Upstream
from ollmbridge.v1.chat_completion_service_pb2 import (
    CreateChatCompletionRequest,
    CreateChatCompletionResponse,
    StreamChatCompletionResponse,
)

__all__ = ["ChatCompletionService"]


class ChatCompletionService:
    """ollmbridge.v1.ChatCompletionService, between a message and the upstream."""

    def __init__(self, upstream: Upstream, settings: UpstreamSettings) -> None:
        self._upstream = upstream
        self._settings = settings

    async def CreateChatCompletion(
        self, request: CreateChatCompletionRequest, call: RpcCall
    ) -> CreateChatCompletionResponse:
        """Return the whole completion."""
        body = await self._upstream.complete(encode_request(request, stream=False, tags=call.tags), call.upstream)
        upstream = call.upstream
        return decode_reply(
            body,
            http_status=upstream.http_status or 200,
            content_type=upstream.content_type,
            may_be_cut=upstream.may_be_cut,
            asked=upstream.asked,
        )

    async def StreamChatCompletion(
        self, request: CreateChatCompletionRequest, call: RpcCall
    ) -> AsyncGenerator[StreamChatCompletionResponse]:
        """Yield the chunks as they come; end only if the completion is whole."""
        call.stream = stream = self._new_stream(call)
        body = encode_request(request, stream=True, tags=call.tags)
        async with self._upstream.stream(body, call.upstream) as events:
            async for data in events:
                for chunk in stream.feed(data):
                    yield chunk
                if stream.done:
                    break
            stream.close(events.failure)

    def _new_stream(self, call: RpcCall) -> ChatStream:
        return ChatStream(
            event_bytes_max=self._settings.event_bytes_max,
            require_finish_reason=self._settings.require_finish_reason,
            asked=call.upstream.asked,
        )
