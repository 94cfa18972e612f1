"""An answer in each form that a scenario may want: a reply, chunks, SSE events, pieces of a body, changed or not.

The forms are those of the gateway's API page, with the keys that TensorZero gateways are seen to send, in their order.
What the answer says is the model's business, in which way it goes wrong a scenario's.
"""

import functools
import os
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bridge.emulator import model
from bridge.emulator.steps import Head, Header, JsonObject, Step, Wait, Write, encode_json, format_json, send, send_json

__all__ = ["DONE", "JSON", "Call", "Chunk", "Memory", "encode_event"]

DONE = b"data: [DONE]\n\n"
JSON: Header = ("content-type", "application/json")
_SSE: tuple[Header, ...] = (("content-type", "text/event-stream"), ("cache-control", "no-cache"))
_BODY_PARTS = 8
"""A body that is no stream counts as this many events."""
_ARGUMENT_CHARS = 6
"""Of a tool call's arguments, in each chunk of a stream."""


@dataclass
class Memory:
    """What scenarios remember from one request to the next."""

    resets_due: int = 0
    """So many of the next connections are reset when they open."""
    failures: OrderedDict[bytes, int] = field(default_factory=OrderedDict)
    """How often the same body has been answered with a failure."""


class Chunk(NamedTuple):
    """What differs from one chunk of a stream to the next."""

    delta: JsonObject
    finish_reason: str | None = None
    usage: dict[str, int] | None = None
    extra: JsonObject | None = None


def encode_event(value: Any) -> bytes:
    """Return a value as an SSE event."""
    return f"data: {format_json(value)}\n\n".encode()


class Call:
    """A request that was accepted, and its answer in each form.

    Args:
        body: the request.
        received: the request's bytes.
        model_name: the model as the answer names it.
        cached: whether the answer comes from the cache.
        chunk_delay_s: the pause before each chunk of a stream but the first.
        memory: what scenarios remember.
    """

    def __init__(
        self,
        body: JsonObject,
        received: bytes,
        model_name: str,
        *,
        cached: bool = False,
        chunk_delay_s: float = 0.0,
        memory: Memory | None = None,
    ) -> None:
        self.received = received
        self.memory = memory or Memory()
        self.answer = model.answer(body)
        self.stream = bool(body.get("stream"))
        self._model_name = model_name
        self._cached = cached
        self._chunk_delay_s = chunk_delay_s
        self._raw_usage = bool(body.get("ollm::include_raw_usage"))
        self._raw_response = bool(body.get("ollm::include_raw_response"))
        self._include_usage = self._raw_usage or bool((body.get("stream_options") or {}).get("include_usage"))
        self._usage = dict.fromkeys(self.answer.usage, 0) if cached else self.answer.usage
        self._id = str(_build_uuid7())
        episode_id = body.get("ollm::episode_id")
        self._episode_id = str(uuid.UUID(episode_id) if episode_id else _build_uuid7())
        self._created = int(time.time())

    # The answer, sent in one way or another

    def send(self, *, chunk_delay_s: float | None = None) -> Iterator[Step]:
        """Send the ordinary answer."""
        return self.send_events(self.split_body(), chunk_delay_s) if self.stream else send_json(200, self.build_reply())

    def send_beginning(self, after: int) -> Iterator[Step]:
        """Send the head and `after` parts of the body, but never its end."""
        yield self.build_head()
        yield from (Write(part, int(self.stream)) for part in self.split_body()[:-2][:after])

    def send_events(self, events: Iterable[bytes], chunk_delay_s: float | None = None) -> Iterator[Step]:
        """Send a stream of these events."""
        delay_s = self._chunk_delay_s if chunk_delay_s is None else chunk_delay_s
        yield Head(200, _SSE)
        for at, event in enumerate(events):
            if at and delay_s:
                yield Wait(delay_s)
            yield Write(event, 1)

    def send_edited(
        self, edit: Callable[[JsonObject], object], encode: Callable[[Any], bytes] = encode_json
    ) -> Iterator[Step]:
        """Send the ordinary answer with every JSON object of it changed in place by `edit`."""
        objects = [self.build_chunk(chunk) for chunk in self.split()] if self.stream else [self.build_reply()]
        for value in objects:
            edit(value)
        if self.stream:
            return self.send_events([*(b"data: " + encode(value) + b"\n\n" for value in objects), DONE])
        return send(200, encode(objects[0]), JSON)

    def send_recoded(self, recode: Callable[[bytes], bytes]) -> Iterator[Step]:
        """Send the ordinary stream with the bytes of every event changed."""
        return self.send_events(map(recode, self.split_body()))

    # Its parts

    def build_head(self, *headers: Header) -> Head:
        """Return the head of the ordinary answer, for a body whose length is not known."""
        return Head(200, (*(_SSE if self.stream else (JSON,)), *headers))

    def split_body(self) -> list[bytes]:
        """Return the body in parts, events or slices; the last two bring its end."""
        if self.stream:
            return [*map(self.encode_chunk, self.split()), DONE]
        body = encode_json(self.build_reply())
        size = len(body) // _BODY_PARTS + 1
        return [body[at : at + size] for at in range(0, len(body), size)]

    def split(self) -> list[Chunk]:
        """Return the answer in chunks; the last one finishes."""
        deltas: list[JsonObject] = [{"role": "assistant", "content": ""}]
        deltas += [{"content": word} for word in self.answer.words]
        for index, call in enumerate(self.answer.tool_calls):
            deltas += [{"tool_calls": [fragment]} for fragment in _split_tool_call(index, call)]
        raw = self._raw_response and not self._cached
        extras = ({"ollm_raw_chunk": format_json({"choices": [{"delta": delta}]})} if raw else None for delta in deltas)
        chunks = [Chunk(delta, extra=extra) for delta, extra in zip(deltas, extras, strict=True)]
        if self._raw_usage and not self._cached:
            chunks.append(Chunk({}, extra={"ollm_raw_usage": self._list_raw(self._build_provider_usage())}))
        return [*chunks, Chunk({}, self.answer.finish_reason, self._usage if self._include_usage else None)]

    def encode_chunk(self, chunk: Chunk) -> bytes:
        """Return a chunk as an SSE event."""
        if chunk.finish_reason is None and chunk.usage is None and chunk.extra is None:
            return self.encode_delta(encode_json(chunk.delta))
        return encode_event(self.build_chunk(chunk))

    def encode_delta(self, delta: bytes) -> bytes:
        """Return a delta that is JSON already as an SSE event."""
        before, after = self._event_template
        return before + delta + after

    @functools.cached_property
    def _event_template(self) -> tuple[bytes, bytes]:
        before, after = encode_event(self.build_chunk(Chunk({"@": 0}))).split(b'{"@":0}')
        return before, after

    def build_chunk(self, chunk: Chunk) -> JsonObject:
        """Return a chunk as the gateway's object."""
        choice = {"index": 0, "finish_reason": chunk.finish_reason, "logprobs": None, "delta": chunk.delta}
        return self._build_completion("chat.completion.chunk", choice, chunk.usage) | (chunk.extra or {})

    def build_reply(self) -> JsonObject:
        """Return the whole answer as the gateway's object."""
        message: JsonObject = {"role": "assistant", "content": "".join(self.answer.words) or None}
        if self.answer.tool_calls:
            message["tool_calls"] = self.answer.tool_calls
        choice = {"index": 0, "finish_reason": self.answer.finish_reason, "message": message}
        reply = self._build_completion("chat.completion", choice, self._usage)
        if self._raw_usage:
            reply["ollm_raw_usage"] = self._list_raw(self._build_provider_usage())
        if self._raw_response:
            raw = {"choices": [choice], "usage": self._build_provider_usage()}
            reply["ollm_raw_response"] = self._list_raw(format_json(raw))
        return reply

    def _build_completion(self, kind: str, choice: JsonObject, usage: dict[str, int] | None) -> JsonObject:
        return {
            "id": self._id,
            "episode_id": self._episode_id,
            "choices": [choice],
            "created": self._created,
            "model": self._model_name,
            "system_fingerprint": "",
            "service_tier": None,
            "object": kind,
            "usage": usage,
        }

    def _build_provider_usage(self) -> JsonObject:
        return {**self.answer.usage, "prompt_tokens_details": {"cached_tokens": 0}}

    def _list_raw(self, data: Any) -> list[JsonObject]:
        """Return what the provider sent, once for each request to it: none for an answer from the cache."""
        entry = {
            "model_inference_id": self._id,
            "provider_type": "emulator",
            "api_type": "chat_completions",
            "data": data,
        }
        return [] if self._cached else [entry]


def _split_tool_call(index: int, call: JsonObject) -> Iterator[JsonObject]:
    """Yield a tool call as TensorZero streams it: id and name once, then pieces of the arguments without them."""
    name, arguments = call["function"]["name"], call["function"]["arguments"]
    yield {"id": call["id"], "index": index, "type": "function", "function": {"name": name, "arguments": ""}}
    for at in range(0, len(arguments), _ARGUMENT_CHARS):
        function = {"name": "", "arguments": arguments[at : at + _ARGUMENT_CHARS]}
        yield {"id": None, "index": index, "type": "function", "function": function}


def _build_uuid7() -> uuid.UUID:
    random = int.from_bytes(os.urandom(10))
    bits = time.time_ns() // 1_000_000 << 80 | random
    return uuid.UUID(int=bits & ~(0xF << 76) & ~(0x3 << 62) | 0x7 << 76 | 0x2 << 62)
