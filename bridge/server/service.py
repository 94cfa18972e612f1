"""The two RPCs on their main path. All that can go wrong is a BridgeError, which the boundary turns into a status."""

import asyncio
import functools
from collections.abc import AsyncGenerator

from google.protobuf.descriptor import ServiceDescriptor

from bridge.core.chat import ChatStream, decode_reply, encode_request, requested_resource
from bridge.core.errors import Asked
from bridge.core.output import has_output
from bridge.core.usage import has_usage_request
from bridge.server.call import RpcCall
from bridge.settings import UpstreamSettings
from bridge.upstream.client import Upstream
from bridge.upstream.large import LARGE_BYTES, run_for_size
from bridge.upstream.waits import Waits
from ollmbridge.v1.chat_completion_service_pb2 import (
    DESCRIPTOR,
    CreateChatCompletionRequest,
    CreateChatCompletionResponse,
    StreamChatCompletionResponse,
)

__all__ = ["ChatCompletionService"]


class ChatCompletionService:
    """ollmbridge.v1.ChatCompletionService, between a message and the upstream.

    `own_key`: whether the upstream gets a key of the bridge's own.
    """

    DESCRIPTOR: ServiceDescriptor = DESCRIPTOR.services_by_name["ChatCompletionService"]

    def __init__(self, upstream: Upstream, settings: UpstreamSettings, *, own_key: bool = False) -> None:
        self._upstream = upstream
        self._settings = settings
        self._own_key = own_key

    async def CreateChatCompletion(
        self, request: CreateChatCompletionRequest, call: RpcCall
    ) -> CreateChatCompletionResponse:
        """Return the whole completion."""
        self._fill_in(call, request)
        request_body = encode_request(request, stream=False, tags=call.tags, identity_tags=call.identity_tags)
        body = await self._upstream.complete(request_body, call.upstream)
        upstream = call.upstream
        decode = functools.partial(
            decode_reply,
            body,
            http_status=upstream.http_status or 200,
            content_type=upstream.content_type,
            may_be_cut=upstream.may_be_cut,
            require_finish_reason=self._settings.require_finish_reason,
            asked=upstream.asked,
        )
        reply = await run_for_size(len(body), decode)
        call.reply_usage = reply.usage if reply.HasField("usage") else None
        return reply

    async def StreamChatCompletion(
        self, request: CreateChatCompletionRequest, call: RpcCall
    ) -> AsyncGenerator[StreamChatCompletionResponse]:
        """Yield the chunks as they come; end only if the completion is whole."""
        self._fill_in(call, request)
        asks_usage = has_usage_request(request)
        adds_usage = not asks_usage and self._settings.stream_usage == "always"
        call.stream = stream = self._new_stream(call, hides_usage=adds_usage)
        body = encode_request(
            request, stream=True, tags=call.tags, identity_tags=call.identity_tags, include_usage=adds_usage
        )
        async with self._upstream.stream(body, call.upstream) as events:
            async for data in events:
                chunks = stream.feed(data)
                chunk = None
                if stream.pending_bytes > LARGE_BYTES:  # the first chunk is that of the pending event
                    chunk = await asyncio.to_thread(next, chunks, None)
                    if chunk is not None:
                        _note_output(chunk, call, events.waits)
                        yield chunk
                for chunk in chunks:
                    _note_output(chunk, call, events.waits)
                    yield chunk
                if stream.done:
                    break
                if stream.is_whole:
                    is_awaited = stream.may_go_on or (asks_usage and stream.usage is None)
                    self._bound_end(events.waits, chunk, is_awaited=is_awaited)
                else:
                    events.waits.keep_open()
            if events.has_ended and not call.upstream.may_be_cut:
                for chunk in stream.end():
                    yield chunk
            stream.close(events.failure)

    def _fill_in(self, call: RpcCall, request: CreateChatCompletionRequest) -> None:
        """Add to a call what the request tells: for its record, and for errors to name."""
        call.model = request.model
        call.upstream.asked = Asked(requested_resource(request), self._own_key)

    def _bound_end(self, waits: Waits, chunk: StreamChatCompletionResponse | None, *, is_awaited: bool) -> None:
        """End a whole completion whose end does not come; `is_awaited`: more is likely to come.

        What goes on after a finish reason counts as in the stream; a chunk without choices is a heartbeat.
        """
        limit_s = self._settings.idle_timeout_s if is_awaited else self._settings.finish_grace_s
        waits.end_within(limit_s, anew=chunk is not None and bool(chunk.choices))

    def _new_stream(self, call: RpcCall, *, hides_usage: bool) -> ChatStream:
        return ChatStream(
            event_bytes_max=self._settings.event_bytes_max,
            require_finish_reason=self._settings.require_finish_reason,
            asked=call.upstream.asked,
            hides_usage=hides_usage,
        )


def _note_output(chunk: StreamChatCompletionResponse, call: RpcCall, waits: Waits) -> None:
    if (waits.has_output_limit or not call.has_output) and has_output(chunk):
        call.has_output = True
        waits.note_output()
