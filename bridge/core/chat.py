"""A chat completion: the request's bytes out, the reply's or the chunks' bytes in, and when a stream is whole.

`[DONE]` is no proof of success, since gateways send it after a lost provider too, and an error event is no proof of the
end. What proves a completion whole is a finish_reason for every choice that was seen, and no error event.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import orjson

from bridge.core.codec import Fault, JsonError, Source, parse
from bridge.core.dialect import CHUNK, OLLM_PREFIX, REPLY, REQUEST
from bridge.core.errors import BridgeError, Code, Resource, from_error_value, from_response, invalid_request, redacted
from bridge.core.refrain import Refrain
from bridge.core.sse import EVENT_BYTES_MAX, Event, EventTooLargeError, SseDecoder
from bridge.core.validate import validate
from ollmbridge.v1 import error_details_pb2 as details_pb2
from ollmbridge.v1.chat_completion_service_pb2 import (
    CreateChatCompletionRequest,
    CreateChatCompletionResponse,
    StreamChatCompletionResponse,
)
from ollmbridge.v1.chat_pb2 import Usage

__all__ = ["ChatStream", "decode", "encode", "selected"]

_CHOICES_MAX: Final = 1024
"""Choices of one stream that are kept account of. The API gives one; OpenAI's at most 128."""
_DONE: Final = b"[DONE]"
_TAGS: Final = f"{OLLM_PREFIX}tags"
_NO_TAGS: Final[Mapping[str, str]] = {}


def encode(request: CreateChatCompletionRequest, *, stream: bool, tags: Mapping[str, str] = _NO_TAGS) -> bytes:
    """Give the JSON body of a request. Raises BridgeError (INVALID_REQUEST) with every fault found.

    `tags` are added to the caller's `ollm::tags`, but for keys that the caller has set.
    """
    faults: list[Fault] = validate(request, stream=stream)
    body: dict[str, Any] = REQUEST.write(request, None, faults)
    if faults:
        raise invalid_request(faults)
    if tags and isinstance(own := body.get(_TAGS, {}), dict):  # else the caller gave a shape of its own in extra_json
        body[_TAGS] = {**tags, **own}
    if not stream:
        if request.HasField("stream_options"):
            del body["stream_options"]
        return orjson.dumps(body)
    body["stream"] = True
    if request.ollm.include_raw_usage:
        options = body.setdefault("stream_options", {})
        if isinstance(options, dict):  # else the caller gave a shape of its own in extra_json
            options.setdefault("include_usage", True)
    return orjson.dumps(body)


def selected(request: CreateChatCompletionRequest) -> Resource:
    """Give what a request asks for: the thing that is missing when the upstream says "not found"."""
    prefix = f"{OLLM_PREFIX}function_name::"
    if request.model.startswith(prefix):
        if request.ollm.variant_name:
            return Resource("variant", request.ollm.variant_name)
        return Resource("function", request.model.removeprefix(prefix))
    return Resource("model", request.model.removeprefix(f"{OLLM_PREFIX}model_name::"))


def decode(
    body: bytes,
    *,
    http_status: int = 200,
    content_type: str = "application/json",
    resource: Resource | None = None,
    own_key: bool = False,
) -> CreateChatCompletionResponse:
    """Give the completion that a 2xx answer's body is. Raises BridgeError where it is an error, or none of either."""
    try:
        value, text = parse(body.removeprefix(b"\xef\xbb\xbf"))
        if type(value) is dict and not value.get("error") and value.get("choices") is not None:
            made = REPLY.read(value, Source(text), ())
            if made is not None:
                return CreateChatCompletionResponse(**made)
    except JsonError:
        pass
    raise from_response(http_status, body, content_type=content_type, resource=resource, own_key=own_key)


def _chunk_of(value: dict[str, Any], source: Source) -> StreamChatCompletionResponse:
    return StreamChatCompletionResponse(**(CHUNK.read(value, source, ()) or {}))


def _decoded(data: bytes) -> StreamChatCompletionResponse:
    value, text = parse(data)
    return _chunk_of(value, Source(text))


class ChatStream:
    """A streamed completion: `feed` bytes, get chunks; `close` at the end, which raises unless the stream is whole.

    `done` says that nothing more needs to be read. `chunks` counts those given out; `usage` is the last seen.
    `own_key` as in `from_response`.
    """

    def __init__(
        self,
        *,
        event_bytes_max: int = EVENT_BYTES_MAX,
        require_finish_reason: bool = True,
        resource: Resource | None = None,
        own_key: bool = False,
    ) -> None:
        self._decoder = SseDecoder(event_bytes_max=event_bytes_max)
        self._refrain = Refrain(_decoded)
        self._require_finish_reason = require_finish_reason
        self._resource = resource
        self._own_key = own_key
        self._finished: dict[int | str, bool] = {}  # choice -> whether its finish_reason has come
        self._failed = False
        self.done = False
        self.chunks = 0
        self.usage: Usage | None = None

    @property
    def whole(self) -> bool:
        """Whether the completion is whole by what has been seen."""
        return bool(self._finished) and all(self._finished.values()) and not self._failed

    def feed(self, data: bytes) -> Iterator[StreamChatCompletionResponse]:
        """Give the chunks that the bytes complete. Raises BridgeError where one is none, after the chunks before it."""
        try:
            for event in self._decoder.feed(data):
                if self.done:
                    return
                if event.name != "error" and event.data.strip() == _DONE:
                    self._end()
                    return
                chunk = self._chunk(event)
                self.chunks += 1  # before it is given: a write that waits for its reader has been taken
                yield chunk
        except EventTooLargeError as error:
            too_large = details_pb2.ERROR_REASON_UPSTREAM_RESPONSE_TOO_LARGE
            self._failed = True
            raise self._told(BridgeError(Code.INTERNAL, too_large, str(error))) from error
        except BridgeError as error:
            self._failed = True
            raise self._told(error) from error.__cause__

    def close(self, broken: BridgeError | None = None) -> None:
        """End the stream: the body is over, or reading it failed. Raises BridgeError unless the completion is whole."""
        if self.done or self.whole:
            return
        raise self._told(broken or self._incomplete("the body ended"))

    def _end(self) -> None:
        if self._require_finish_reason and not self.whole:
            raise self._incomplete("[DONE] came")
        self.done = True

    def _chunk(self, event: Event) -> StreamChatCompletionResponse:
        if not event.name and (repeated := self._refrain.chunk(event.data)) is not None:
            return repeated  # which has been accounted for
        value, source = self._object(event)
        if event.name == "error" or value.get("error"):
            raise from_error_value(
                value, source, named=event.name == "error", resource=self._resource, own_key=self._own_key
            )
        try:
            chunk = _chunk_of(value, source)
        except JsonError as error:
            raise self._invalid(event, str(error)) from error
        self._account(value.get("choices"))
        if chunk.HasField("usage"):
            self.usage = chunk.usage
        elif not event.name:
            self._refrain.note(event.data, chunk)
        return chunk

    def _object(self, event: Event) -> tuple[dict[str, Any], Source]:
        try:
            value, text = parse(event.data)
        except JsonError as error:
            if event.name == "error":  # its words may be no JSON, and are its message then
                return {"message": event.data.decode("utf-8", "replace")}, Source(b"{}")
            raise self._invalid(event, str(error)) from error
        if type(value) is not dict:
            if event.name == "error":
                return {"message": value if type(value) is str else text.decode()}, Source(text)
            raise self._invalid(event, f"it is {type(value).__name__}")
        return value, Source(text)

    def _account(self, choices: Any) -> None:
        """Note which choices have come and which are finished, in the JSON: a list that did not fit counts as well."""
        for choice in choices if type(choices) is list else ():
            if type(choice) is dict:
                index = choice.get("index") or 0
                index = index if isinstance(index, (int, str)) else repr(index)
                self._finished[index] = bool(choice.get("finish_reason")) or self._finished.get(index, False)
        if len(self._finished) > _CHOICES_MAX:
            message = f"expected at most {_CHOICES_MAX} choices in a stream, found more"
            raise BridgeError(Code.INTERNAL, details_pb2.ERROR_REASON_INVALID_UPSTREAM_RESPONSE, message)

    def _incomplete(self, what: str) -> BridgeError:
        waiting = [index for index, finished in self._finished.items() if not finished]
        found = f"choice {waiting[0]} had none" if waiting else "no choice was seen"
        message = f"expected a finish_reason for every choice before {what}, found that {found}"
        return BridgeError(Code.ABORTED, details_pb2.ERROR_REASON_INCOMPLETE_STREAM, message)

    def _invalid(self, event: Event, why: str) -> BridgeError:
        excerpt = repr(redacted(event.data[:1024].decode("utf-8", "replace"))[:40])
        message = f"expected a JSON object in event {self.chunks + 1} of the stream, found {excerpt}: {why}"
        return BridgeError(Code.INTERNAL, details_pb2.ERROR_REASON_INVALID_UPSTREAM_RESPONSE, message)

    def _told(self, error: BridgeError) -> BridgeError:
        """Say in the error how far the stream had come. After a chunk something was generated, so never UNAVAILABLE."""
        if error.upstream is None:
            error.upstream = details_pb2.UpstreamError(http_status=200)
        error.upstream.chunks_delivered = self.chunks
        if self.usage is not None:
            error.upstream.partial_usage.CopyFrom(self.usage)
        if self.chunks and error.code is Code.UNAVAILABLE:
            error.code = Code.ABORTED
        return error
