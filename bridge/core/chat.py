"""A chat completion: the request's bytes out, the reply's or the chunks' bytes in, and when a stream is whole.

`[DONE]` is no proof of success, since gateways send it after a lost provider too, and an error event is no proof of the
end. What proves a completion whole is a finish_reason for every choice that was seen, and no error event.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import orjson

from bridge.core.chunk_template import ChunkTemplate
from bridge.core.dialect import CHUNK, OLLM_PREFIX, REPLY, REQUEST
from bridge.core.errors import NOTHING_ASKED, Asked, BridgeError, Code, Resource, Violation, invalid_request
from bridge.core.http_errors import error_from_response, error_from_value
from bridge.core.json_text import JsonError, Source, parse
from bridge.core.redact import redact
from bridge.core.sse import EVENT_BYTES_MAX, Event, EventTooLargeError, SseDecoder
from bridge.core.validate import validate
from ollmbridge.v1 import error_details_pb2 as details_pb2
from ollmbridge.v1.chat_completion_service_pb2 import (
    CreateChatCompletionRequest,
    CreateChatCompletionResponse,
    StreamChatCompletionResponse,
)
from ollmbridge.v1.chat_pb2 import Usage

__all__ = ["ChatStream", "decode_reply", "decode_request_json", "encode_request", "requested_resource"]

_CHOICES_MAX: Final = 1024
"""Choices of one stream that are tracked. The API has one; OpenAI's at most 128."""
_DONE: Final = b"[DONE]"
_BOM: Final = b"\xef\xbb\xbf"
_TAGS: Final = f"{OLLM_PREFIX}tags"
_NO_TAGS: Final[Mapping[str, str]] = {}


# Requests


def encode_request(request: CreateChatCompletionRequest, *, stream: bool, tags: Mapping[str, str] = _NO_TAGS) -> bytes:
    """Return the JSON body of a request. Raises BridgeError (INVALID_REQUEST) with every violation found.

    `tags` are added to the caller's `ollm::tags`, but for keys that the caller has set.
    """
    violations: list[Violation] = validate(request, stream=stream)
    body: dict[str, Any] = REQUEST.write(request, None, violations)
    if violations:
        raise invalid_request(violations)
    if tags and isinstance(own := body.get(_TAGS, {}), dict):  # else extra_json has them in a shape of the caller's
        body[_TAGS] = {**tags, **own}
    if not stream:
        if request.HasField("stream_options"):
            del body["stream_options"]
        return orjson.dumps(body)
    body["stream"] = True
    if request.ollm.include_raw_usage:
        options = body.setdefault("stream_options", {})
        if isinstance(options, dict):  # else extra_json has them in a shape of the caller's
            options.setdefault("include_usage", True)
    return orjson.dumps(body)


def decode_request_json(text: bytes | str) -> CreateChatCompletionRequest:
    """Return the request that a JSON object of the gateway's API stands for: the way back of `encode_request`.

    Only the form is read; `encode_request` judges what the request says. Raises ValueError if the text is no object.
    """
    value, source_text = parse(text.encode() if isinstance(text, str) else text)
    arguments = REQUEST.read(value, Source(source_text), ())
    if arguments is None:
        raise ValueError(f"expected a JSON object, found a value of type {type(value).__name__}")
    return CreateChatCompletionRequest(**arguments)


def requested_resource(request: CreateChatCompletionRequest) -> Resource:
    """Return what a request selects: the thing that is missing if the upstream says "not found"."""
    prefix = f"{OLLM_PREFIX}function_name::"
    if request.model.startswith(prefix):
        if request.ollm.variant_name:
            return Resource("variant", request.ollm.variant_name)
        return Resource("function", request.model.removeprefix(prefix))
    return Resource("model", request.model.removeprefix(f"{OLLM_PREFIX}model_name::"))


# Replies


def decode_reply(
    body: bytes,
    *,
    http_status: int = 200,
    content_type: str = "application/json",
    may_be_cut: bool = False,
    asked: Asked = NOTHING_ASKED,
) -> CreateChatCompletionResponse:
    """Return the completion in the body of a 2xx answer. Raises BridgeError if it is an error, or neither of them.

    `may_be_cut`: the body ended with its connection, so that half a JSON document is a connection that was lost.
    """
    try:
        value, text = parse(body.removeprefix(_BOM))
        if type(value) is dict and not value.get("error") and value.get("choices") is not None:
            arguments = REPLY.read(value, Source(text), ())
            if arguments is not None:
                return CreateChatCompletionResponse(**arguments)
    except JsonError as error:
        if may_be_cut and body.lstrip().startswith(b"{"):
            raise _lost_in_the_middle(http_status, body) from error
    raise error_from_response(http_status, body, content_type=content_type, asked=asked)


def _lost_in_the_middle(http_status: int, body: bytes) -> BridgeError:
    message = f"the connection to the gateway was lost: it ended in the middle of the answer, after {len(body)} bytes"
    upstream = details_pb2.UpstreamError(http_status=http_status)
    return BridgeError(Code.ABORTED, details_pb2.ERROR_REASON_UPSTREAM_DISCONNECTED, message, upstream=upstream)


# Streams


class ChatStream:
    """A streamed completion: `feed` bytes, get chunks; `close` at the end, which raises unless the stream is whole.

    `done` says that nothing more needs to be read. `chunks` counts those that came out; `usage` is the last seen.
    `use_templates` allows the fast path of `chunk_template.py`, which changes no chunk.
    """

    def __init__(
        self,
        *,
        event_bytes_max: int = EVENT_BYTES_MAX,
        require_finish_reason: bool = True,
        asked: Asked = NOTHING_ASKED,
        use_templates: bool = True,
    ) -> None:
        self._decoder = SseDecoder(event_bytes_max=event_bytes_max)
        self._template = ChunkTemplate(_decode_chunk) if use_templates else None
        self._require_finish_reason = require_finish_reason
        self._asked = asked
        self._finished: dict[int | str, bool] = {}  # choice -> whether its finish_reason has come
        self._failed = False
        self.done = False
        self.chunks = 0
        self.usage: Usage | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the completion is whole by what has been seen."""
        return bool(self._finished) and all(self._finished.values()) and not self._failed

    def feed(self, data: bytes) -> Iterator[StreamChatCompletionResponse]:
        """Yield the chunks that the bytes complete. Raises BridgeError if an event is none, after the chunks before it.

        What comes after the stream is done is not read.
        """
        if self.done:
            return
        try:
            for event in self._decoder.feed(data):
                chunk = self._read_event(event)
                if chunk is None:
                    self._finish()
                    return
                self.chunks += 1  # before it is yielded: a write that waits for its reader has been taken
                yield chunk
        except EventTooLargeError as error:
            self._failed = True
            too_large = details_pb2.ERROR_REASON_UPSTREAM_RESPONSE_TOO_LARGE
            message = f"{error} (upstream.event_bytes_max)"
            raise self._with_progress(BridgeError(Code.INTERNAL, too_large, message)) from error
        except BridgeError as error:
            self._failed = True
            raise self._with_progress(error) from error.__cause__

    def close(self, failure: BridgeError | None = None) -> None:
        """End the stream: the body is over, or reading it failed. Raises BridgeError unless the completion is whole."""
        if self.done or self.is_whole:
            return
        raise self._with_progress(failure or self._build_incomplete_error("the body ended"))

    def _finish(self) -> None:
        if self._require_finish_reason and not self.is_whole:
            raise self._build_incomplete_error("[DONE] came")
        self.done = True

    def _read_event(self, event: Event) -> StreamChatCompletionResponse | None:
        """Return an event's chunk, or None if it is the last event. Raises BridgeError if it is an error or neither."""
        name, data = event
        template = None if name else self._template
        if template is not None and (chunk := template.render(data)) is not None:
            return chunk  # its choices have been tracked: they are those of the template
        if name == "error":
            raise error_from_value(*_parse_error_event(data), named=True, asked=self._asked)
        if data.strip() == _DONE:
            return None
        try:
            value, text = parse(data)
            if type(value) is not dict:
                raise self._build_event_error(data, f"it is of type {type(value).__name__}")
            source = Source(text)
            if value.get("error"):
                raise error_from_value(value, source, named=False, asked=self._asked)
            chunk = _build_chunk(value, source)
        except JsonError as error:
            raise self._build_event_error(data, str(error)) from error
        self._track(value.get("choices"))
        if chunk.HasField("usage"):
            self.usage = chunk.usage
        elif template is not None:
            template.remember(data, chunk)
        return chunk

    def _track(self, choices: Any) -> None:
        """Keep which choices have come and which are finished, by the JSON: a list that did not fit counts as well."""
        for choice in choices if type(choices) is list else ():
            if type(choice) is dict:
                index = choice.get("index") or 0
                index = index if isinstance(index, (int, str)) else repr(index)
                self._finished[index] = bool(choice.get("finish_reason")) or self._finished.get(index, False)
        if len(self._finished) > _CHOICES_MAX:
            message = f"the stream has more than {_CHOICES_MAX} choices"
            raise BridgeError(Code.INTERNAL, details_pb2.ERROR_REASON_INVALID_UPSTREAM_RESPONSE, message)

    def _build_incomplete_error(self, end: str) -> BridgeError:
        unfinished = [index for index, finished in self._finished.items() if not finished]
        missing = f"choice {unfinished[0]} had a finish_reason" if unfinished else "any choice came"
        message = f"the stream is incomplete: {end} before {missing}"
        return BridgeError(Code.ABORTED, details_pb2.ERROR_REASON_INCOMPLETE_STREAM, message)

    def _build_event_error(self, data: bytes, why: str) -> BridgeError:
        excerpt = repr(redact(data[:1024].decode("utf-8", "replace"))[:40])
        message = f"expected a JSON object in event {self.chunks + 1} of the stream, found {excerpt}: {why}"
        return BridgeError(Code.INTERNAL, details_pb2.ERROR_REASON_INVALID_UPSTREAM_RESPONSE, message)

    def _with_progress(self, error: BridgeError) -> BridgeError:
        return error.with_progress(http_status=200, chunks=self.chunks, usage=self.usage)


def _parse_error_event(data: bytes) -> tuple[Any, Source]:
    """Return the value of an event named `error`. Words that are no JSON object are its message."""
    try:
        value, text = parse(data)
    except JsonError:
        return {"message": data.decode("utf-8", "replace")}, Source(b"{}")
    if type(value) is dict:
        return value, Source(text)
    return {"message": value if type(value) is str else text.decode()}, Source(text)


def _decode_chunk(data: bytes) -> StreamChatCompletionResponse:
    value, text = parse(data)
    return _build_chunk(value, Source(text))


def _build_chunk(value: dict[str, Any], source: Source) -> StreamChatCompletionResponse:
    return StreamChatCompletionResponse(**(CHUNK.read(value, source, ()) or {}))
