"""A streamed completion: bytes to chunks, and when the stream is whole.

An error ends the stream wherever it stands: in an event, in a choice, or outside of the events. So does an event that
can't be read, since a completion with a gap is not whole; behind a whole completion it is no failure. Nothing depends
on how the bytes are cut.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from bridge.core.chunk_template import ChunkTemplate
from bridge.core.completion import ChoicesError, Completion, check_count
from bridge.core.dialect import CHUNK
from bridge.core.envelope import Envelope, find_error
from bridge.core.error_body import read_document, read_excerpt
from bridge.core.errors import NOTHING_ASKED, Asked, BridgeError, Code, too_large_error
from bridge.core.http_errors import error_from_response, error_from_value, error_inside_answer
from bridge.core.json_text import JsonError, JsonTooLargeError, parse
from bridge.core.source import Source
from bridge.core.sse import EVENT_BYTES_MAX, Event, EventTooLargeError, SseDecoder
from bridge.core.usage import merge_usage, take_out_usage
from ollmbridge.v1 import error_details_pb2 as details_pb2
from ollmbridge.v1.chat_completion_service_pb2 import StreamChatCompletionResponse
from ollmbridge.v1.chat_pb2 import Usage
from ollmbridge.v1.error_details_pb2 import UpstreamError

__all__ = ["ChatStream"]

_DONE: Final = b"[DONE]"
_KEEP_ALIVES: Final = frozenset({"ping", "heartbeat", "keep-alive", "keepalive"})
"""Names of events that say no more than that the connection lives."""


class ChatStream:
    """A streamed completion: `feed` bytes, get chunks; `close` at the end, which raises unless the stream is whole.

    `done` says that nothing more needs to be read. `chunks` counts those that came out; `usage` is what came of it so
    far, which no chunk has if the stream `hides_usage`. `use_templates` allows the fast path of `chunk_template.py`,
    which changes no chunk.
    """

    def __init__(
        self,
        *,
        event_bytes_max: int = EVENT_BYTES_MAX,
        require_finish_reason: bool = True,
        asked: Asked = NOTHING_ASKED,
        hides_usage: bool = False,
        use_templates: bool = True,
    ) -> None:
        self._decoder = SseDecoder(event_bytes_max=event_bytes_max)
        self._template = ChunkTemplate(_decode_chunk) if use_templates else None
        self._require_finish_reason = require_finish_reason
        self._asked = asked
        self._hides_usage = hides_usage
        self._brings_usage = False  # the chunk that was read last
        self._completion = Completion()
        self._failed = False
        self._has_events = False
        self._is_ending = False
        self._is_cut = False  # the body ended in a line, or in an event that is not whole
        self._partial = b""  # a last event that was cut
        self.done = False
        self.chunks = 0
        self.usage: Usage | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the completion is whole by what has been seen: the predicate of any end that is not explicit."""
        return self._completion.is_whole and not self._failed

    @property
    def may_go_on(self) -> bool:
        """Whether the completion, which is whole, may be of a server that sends a finish_reason with each chunk."""
        return self._completion.may_go_on

    @property
    def pending_bytes(self) -> int:
        """How much has come of the event that the next bytes may complete."""
        return self._decoder.pending_bytes

    def feed(self, data: bytes) -> Iterator[StreamChatCompletionResponse]:
        """Yield the chunks that the bytes complete. Raises BridgeError if an event is none, after the chunks before it.

        What comes after the stream is done is not read.
        """
        return iter(()) if self.done else self._read_events(self._decoder.feed(data))

    def end(self) -> Iterator[StreamChatCompletionResponse]:
        """Yield the chunk of a last event that lacks its blank line: for a body that ended as its framing promised.

        The event counts if it is whole, or reports an error. A stream that is closed without this has no explicit end.
        Raises BridgeError.
        """
        self._is_ending = True
        self._is_cut = self._decoder.is_within_event
        return iter(()) if self.done else self._read_events(self._decoder.end())

    def close(self, failure: BridgeError | None = None) -> None:
        """End the stream: the body is over, or reading it failed. Raises BridgeError unless the completion is whole."""
        if self.done:
            return
        try:
            self._raise_stray_error(is_cut=failure is not None)
            if not self.is_whole:
                if failure is not None:
                    raise failure
                is_explicit = self._is_ending and not self._is_cut and not self._decoder.read_stray()
                self._check_finished("the body ended", is_explicit=is_explicit)
            self.done = True
        except BridgeError as error:
            raise self._with_progress(error) from error.__cause__

    def _read_events(self, events: Iterator[Event]) -> Iterator[StreamChatCompletionResponse]:
        try:
            for event in events:
                chunk = self._read_event(event)
                if chunk is not None:
                    if self._brings_usage and not self._deliver_usage(chunk):
                        continue
                    self.chunks += 1  # before it is yielded: a write that waits for its reader has been taken
                    yield chunk
                elif self.done:
                    return
        except EventTooLargeError as error:
            if self.is_whole:
                self.done = True
                return
            self._failed = True
            too_large = details_pb2.ERROR_REASON_UPSTREAM_RESPONSE_TOO_LARGE
            message = f"{error} (upstream.event_bytes_max)"
            raise self._with_progress(BridgeError(Code.INTERNAL, too_large, message)) from error
        except BridgeError as error:
            self._failed = True
            raise self._with_progress(error) from error.__cause__

    def _read_event(self, event: Event) -> StreamChatCompletionResponse | None:
        """Return an event's chunk, or None if it has none. Raises BridgeError if it is an error, or can't be read."""
        name, data = event
        template = None if name or self._completion.has_finished_choice else self._template
        if template is not None and (chunk := template.render(data)) is not None:
            return chunk  # its choices have been tracked: they are those of the template
        if name and name.lower() == "error":
            value, source = _parse_error_event(data)
            raise error_from_value(value, source, named=True, asked=self._asked)
        stripped = data.strip()
        if not stripped or (name and name.lower() in _KEEP_ALIVES):
            return None
        self._has_events = True
        if stripped == _DONE:
            self._raise_stray_error(is_cut=False)
            if self._require_finish_reason:
                self._check_finished("[DONE] came", is_explicit=True)
            self.done = True
            return None
        try:
            value, text = parse(data)
            source = Source(text)
            if (envelope := find_error(value, source, text)) is not None:
                raise self._build_error(envelope, value, source)
            if type(value) is dict:
                check_count(value.get("choices"))
            chunk = _build_chunk(value, source)
            if (choices := value.get("choices")) is not None:
                self._track(choices, data)
            self._is_cut = False
        except JsonTooLargeError as error:
            message = f"event {self.chunks + 1} of the stream is too large: {error}"
            raise too_large_error(message, 200) from error
        except JsonError as error:
            self._refuse_event(data, error)
            return None
        if value.get("usage") is not None:
            self._brings_usage = True
            if not choices:
                self._completion.track_usage()
        elif template is not None:
            template.remember(data, chunk)
        return chunk

    def _deliver_usage(self, chunk: StreamChatCompletionResponse) -> bool:
        """Keep a chunk's usage, and return whether the chunk is delivered; one of a template has none."""
        self._brings_usage = False
        if chunk.HasField("usage"):
            self.usage = merge_usage(self.usage, chunk.usage)
        return not self._hides_usage or take_out_usage(chunk)

    def _track(self, choices: Any, data: bytes) -> None:
        try:
            self._completion.track(choices)
        except ChoicesError as error:
            raise self._build_event_error(data, error) from error
        except BridgeError as error:
            raise replace(error, upstream=_build_excerpt(data)) from None

    def _refuse_event(self, data: bytes, why: JsonError) -> None:
        """Raise the error of an event that can't be read; not behind a whole completion, nor of one that was cut."""
        if self.is_whole:
            return
        if self._is_ending:
            self._partial = data
            return
        raise self._build_event_error(data, why) from why

    def _build_event_error(self, data: bytes, why: ValueError) -> BridgeError:
        message = f"expected a JSON object in event {self.chunks + 1} of the stream, found another text: {why}"
        if isinstance(why, ChoicesError):
            message = f"event {self.chunks + 1} of the stream has no valid choices: {why}"
        invalid = details_pb2.ERROR_REASON_INVALID_UPSTREAM_RESPONSE
        return BridgeError(Code.INTERNAL, invalid, message, upstream=_build_excerpt(data))

    def _check_finished(self, end: str, *, is_explicit: bool) -> None:
        """Raise the error of an incomplete completion, unless its end is explicit and each choice has finished."""
        if not is_explicit or self._failed or not self._completion.is_finished:
            stray = self._partial or self._decoder.read_stray()
            incomplete = self._completion.build_incomplete_error(end)
            raise replace(incomplete, upstream=_build_excerpt(stray) if stray else None)

    def _raise_stray_error(self, *, is_cut: bool) -> None:
        """Raise the error that stands outside of the events, or instead of them, if there is one."""
        stray = self._decoder.read_stray()
        if not stray or self._failed:
            return
        value, source = read_document(stray)
        if (envelope := find_error(value, source)) is not None:
            raise self._build_error(envelope, value, source)
        if not (self._has_events or self._partial or is_cut):
            raise error_from_response(200, stray, content_type="text/event-stream", asked=self._asked)

    def _build_error(self, envelope: Envelope, value: Any, source: Source) -> BridgeError:
        return error_inside_answer(envelope, value, source, asked=self._asked)

    def _with_progress(self, error: BridgeError) -> BridgeError:
        return error.with_progress(http_status=200, chunks=self.chunks, usage=self.usage)


def _parse_error_event(data: bytes) -> tuple[Any, Source]:
    """Return the value of an event named `error`. Words that are no JSON object are its message."""
    try:
        value, text = parse(data)
    except JsonError:
        return data.decode("utf-8", "replace"), Source(b"{}")
    return value, Source(text)


def _build_excerpt(data: bytes) -> UpstreamError:
    return UpstreamError(http_status=200, **read_excerpt(data))


def _decode_chunk(data: bytes) -> StreamChatCompletionResponse:
    value, text = parse(data)
    return _build_chunk(value, Source(text))


def _build_chunk(value: Any, source: Source) -> StreamChatCompletionResponse:
    """Return the chunk of a JSON value. Raises JsonError if it is no object."""
    if type(value) is not dict:
        raise JsonError(f"it is of type {type(value).__name__}")
    return StreamChatCompletionResponse(**(CHUNK.read(value, source, ()) or {}))
