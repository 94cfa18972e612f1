"""The ways in which an answer is unusual and yet right: other timing, sizes, spelling, keys and values.

One function each, from a call to steps. Names, defaults and helps of what a test can ask for stand in the table of
`scenarios`.
"""

import itertools
import json
import re
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from bridge.emulator.answers import DONE, Call, Chunk, encode_event
from bridge.emulator.steps import JsonObject, Step, Wait, Write, encode_json


def mirror(call: Call) -> Iterator[Step]:
    """Repeat the request's body."""
    call.answer = call.answer._replace(words=[call.received.decode()], tool_calls=[], finish_reason="stop")
    return call.send()


def delay(call: Call, *, delay_s: float, chunk_delay_s: float) -> Iterator[Step]:
    """Wait before the headers, and before each later event."""
    yield Wait(delay_s)
    yield from call.send(chunk_delay_s=chunk_delay_s)


def split(call: Call, *, size: int, delay_s: float) -> Iterator[Step]:
    """Write the body in pieces of so many bytes."""
    body = b"".join(call.split_body())
    yield call.build_head()
    for at in range(0, len(body), max(size, 1)):
        end = at + max(size, 1)
        events = body.count(b"\n\n", max(at - 1, 0), end) if call.stream else 0
        yield Write(body[at:end], events)
        yield Wait(delay_s)


def insert_comments(call: Call, *, every: float, count: int) -> Iterator[Step]:
    """Send so many comments before each event, each followed by a pause."""
    yield call.build_head()
    for part in call.split_body():
        for _ in range(count):
            yield Write(b":\n\n")
            yield Wait(every)
        yield Write(part, 1)


def insert_reasoning(call: Call, *, key: str, text: str) -> Iterator[Step]:
    """Send reasoning before the answer, in delta and message under the key."""
    if not call.stream:
        return call.send_edited(lambda value: value["choices"][0]["message"].update({key: text}))
    first, *others = call.split()
    thoughts = [Chunk({key: word}) for word in re.findall(r"\s*\S+", text.rstrip())]
    return call.send_events([*map(call.encode_chunk, [first, *thoughts, *others]), DONE])


def begin_with_bom(call: Call) -> Iterator[Step]:
    """Send a byte order mark before the first event."""
    first, *others = call.split_body()
    return call.send_events([b"\xef\xbb\xbf" + first, *others])


def split_data_lines(call: Call) -> Iterator[Step]:
    """Send each event's JSON on many `data:` lines, without a space after the colon."""
    texts = [json.dumps(call.build_chunk(chunk), indent=0, ensure_ascii=False) for chunk in call.split()]
    events = ["".join(f"data:{line}\n" for line in text.split("\n")) + "\n" for text in texts]
    return call.send_events([*(event.encode() for event in events), b"data:[DONE]\n\n"])


def separate_usage(call: Call) -> Iterator[Step]:
    """Send usage on a chunk of its own, with no choices."""
    *chunks, last = call.split()
    events = [*map(call.encode_chunk, chunks), call.encode_chunk(last._replace(usage=None))]
    if last.usage is not None:
        events.append(encode_event(call.build_chunk(last) | {"choices": []}))
    return call.send_events([*events, DONE])


def cut_surrogates(call: Call) -> Iterator[Step]:
    """Cut an emoji in two inside its escape."""
    if not call.stream:
        return call.send_edited(
            lambda value: _set_content(value, "cut \ud83d"), lambda value: json.dumps(value).encode("ascii")
        )
    deltas = [json.dumps({"content": half}).encode("ascii") for half in ("cut \ud83d", "\ude00 whole")]
    first, *others = call.split_body()
    return call.send_events([first, *map(call.encode_delta, deltas), *others])


def enlarge(call: Call, *, size: int) -> Iterator[Step]:
    """Send one delta, or the message, with a content of so many bytes."""
    return call.send_edited(lambda value: _set_content(value, "x" * size))


def _set_content(value: JsonObject, content: str) -> None:
    """Set the content of a message, or of a stream's first chunk."""
    choice = value["choices"][0]
    if "message" in choice:
        choice["message"]["content"] = content
    elif "role" in choice["delta"]:
        choice["delta"]["content"] = content


def repeat(call: Call, *, chunks: int, bytes_: int) -> Iterator[Step]:
    """Send so many chunks of so many bytes of content, as fast as the peer reads."""
    event = call.encode_chunk(Chunk({"content": "x" * bytes_}))
    first, *_, last = call.split()
    body = itertools.repeat(event, chunks)
    return call.send_events(itertools.chain([call.encode_chunk(first)], body, [call.encode_chunk(last), DONE]))


def pace(call: Call, *, chunks: int, interval_ms: float) -> Iterator[Step]:
    """Send a chunk at each tick of the clock; its content is when it was due and when it was sent."""
    first, *_, last = call.split()
    yield call.build_head()
    yield Write(call.encode_chunk(first), 1)
    start = time.monotonic_ns()
    for number in range(1, chunks + 1):
        due = start + round(number * interval_ms * 1e6)
        yield Wait(max(0.0, (due - time.monotonic_ns()) / 1e9))
        yield Write(call.encode_chunk(Chunk({"content": f"{due} {time.monotonic_ns()} "})), 1)
    yield Write(call.encode_chunk(last), 1)
    yield Write(DONE, 1)


def flood_headers(call: Call, *, count: int, size: int) -> Iterator[Step]:
    """Send so many headers of so many bytes before the ordinary answer."""
    yield call.build_head(*((f"x-flood-{number}", "x" * size) for number in range(count)))
    yield from (Write(part, int(call.stream)) for part in call.split_body())


_BOMB_PARTS, _BOMB_PART_BYTES = 200, 1_000_000


def compress(call: Call, *, bomb: int) -> Iterator[Step]:
    """Send the answer in gzip, or many zeros."""
    yield call.build_head(("content-encoding", "gzip"))
    packer = zlib.compressobj(wbits=31)
    parts: Iterable[bytes] = itertools.repeat(bytes(_BOMB_PART_BYTES), _BOMB_PARTS) if bomb else call.split_body()
    for part in parts:
        data = packer.compress(part) + packer.flush(zlib.Z_SYNC_FLUSH)
        yield Write(data, int(call.stream and not bomb))
    yield Write(packer.flush())


def add_logprobs(call: Call) -> Iterator[Step]:
    """Add log probabilities to every choice with content."""
    return call.send_edited(_set_logprobs)


def _set_logprobs(value: JsonObject) -> None:
    choice = value["choices"][0]
    content = (choice.get("message") or choice.get("delta") or {}).get("content")
    if content:
        token = {"token": content, "logprob": -0.25, "bytes": [*content.encode()], "top_logprobs": []}
        choice["logprobs"] = {"content": [token], "refusal": None}


_UNKNOWN_FIELDS = (
    b'"x_big":9007199254740993,"x_price":1.10,"x_exponent":1e2,"x_null":null,'
    b'"x_nested":{"z":[1.0,null,{"b":-0,"a":"\\u00e9"}],"a":true}'
)


def add_unknown_fields(call: Call) -> Iterator[Step]:
    """Add keys that nobody models to every object, with numbers whose spelling matters."""
    return call.send_edited(
        lambda value: _edit_objects(value, lambda inner: inner.update({"@": 0})),
        lambda value: encode_json(value).replace(b'"@":0', _UNKNOWN_FIELDS),
    )


def _edit_objects(value: Any, edit: Callable[[JsonObject], None]) -> None:
    """Edit the JSON objects in a value in place, itself last."""
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _edit_objects(inner, edit)
    if isinstance(value, dict):
        edit(value)


_MISFITS: Mapping[str, Any] = {
    "id": 12,
    "created": "soon",
    "model": ["a", "b"],
    "system_fingerprint": {"b": 1, "a": 2},
    "service_tier": 7,
    "role": False,
    "prompt_tokens": "two",
    "completion_tokens": 1.5,
    "total_tokens": 2**70,
}


def mistype_values(call: Call) -> Iterator[Step]:
    """Set modelled keys to values of a wrong type."""
    return call.send_edited(lambda value: _edit_objects(value, _set_misfits))


def _set_misfits(value: JsonObject) -> None:
    value.update({key: _MISFITS[key] for key in value.keys() & _MISFITS.keys()})


def double_choices(call: Call) -> Iterator[Step]:
    """Add a second choice to the first, everywhere."""
    return call.send_edited(lambda value: value["choices"].append({**value["choices"][0], "index": 1}))
