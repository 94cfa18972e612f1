"""Readers of what went over a wire, that share no code with the bridge: an HTTP/1.1 answer, its events, gRPC frames.

Chaos judges by them: an OK is right where these bytes, as they were passed on, are a whole completion, and the caller's
messages say the same as they do.
"""

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import h11
from google.protobuf.message import Message

__all__ = ["Read", "grpc_messages", "is_whole_response", "parsed", "read", "same"]

DATA, PADDED = 0, 8


# HTTP/1.1


@dataclass
class Read:
    """An answer as it was read. `whole`: it is a whole completion; `values` are its JSON objects, in order.

    `status` is 0 where there is none. `lenient` is what a strict reader of HTTP objects to, if anything: aiohttp's
    parser is lenient, as browsers' are, so what it objects to is read again as that one reads it.
    """

    status: int = 0
    whole: bool = False
    values: list[dict[str, Any]] = field(default_factory=list)
    lenient: str = ""


def is_whole_response(data: bytes) -> bool:
    """Whether these are the bytes of a whole answer, as a sound upstream writes them."""
    head, end, body = data.partition(b"\r\n\r\n")
    if not end:
        return False
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(body) >= int(line.partition(b":")[2])
    return body.endswith(b"0\r\n\r\n")


def read(data: bytes, *, closed: bool, stream: bool) -> Read:
    """Read what was passed on; `closed`: the connection was closed behind it."""
    found = Read()
    try:
        answer = _strictly(data, closed=closed)
    except h11.RemoteProtocolError as error:
        found.lenient = str(error)
        answer = _leniently(data, closed=closed)
    found.status = answer.status
    if not 200 <= answer.status < 300:
        return found
    if stream:
        if answer.status == 200 and answer.kind.partition(";")[0].strip().lower() == "text/event-stream":
            _read_events(answer.body, found)
    elif answer.complete:
        value = _json(answer.body)
        if isinstance(value, dict) and not value.get("error") and value.get("choices") is not None:
            found.values, found.whole = [value], True
    return found


class _Answer(NamedTuple):
    """An HTTP answer: `status` 0 where there is none, `complete` where its body is."""

    status: int = 0
    kind: str = ""
    body: bytes = b""
    complete: bool = False


def _strictly(data: bytes, *, closed: bool) -> _Answer:
    """Read as the RFC has it. Raises h11.RemoteProtocolError."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1024 * 1024)
    connection.send(h11.Request(method="POST", target="/", headers=[("host", "x"), ("content-length", "0")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    if closed:
        connection.receive_data(b"")
    status, kind, body = 0, "", bytearray()
    while True:
        event: Any = connection.next_event()
        match event:
            case h11.Response():
                status, kind = event.status_code, dict(event.headers).get(b"content-type", b"").decode("latin-1")
            case h11.Data():
                body += event.data
            case h11.InformationalResponse():
                pass
            case _:  # its end, or the end of what came
                return _Answer(status, kind, bytes(body), isinstance(event, h11.EndOfMessage))


def _leniently(data: bytes, *, closed: bool) -> _Answer:
    """Read as llhttp does in clients: any header, LF for CRLF, blanks about a chunk's size."""
    head, _, rest = re.sub(rb"\r?\n\r?\n", b"\n\n", data, count=1).partition(b"\n\n")
    first, *lines = head.split(b"\n")
    status = re.match(rb"HTTP/1\.[01] (\d{3})", first)
    if status is None:
        return _Answer()
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
    kind = headers.get(b"content-type", b"").decode("latin-1")
    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        return _Answer(int(status[1]), kind, *_unchunked(rest))
    length = headers.get(b"content-length", b"")
    if length.isdigit():
        return _Answer(int(status[1]), kind, rest[: int(length)], len(rest) >= int(length))
    return _Answer(int(status[1]), kind, rest, closed)


def _unchunked(rest: bytes) -> tuple[bytes, bool]:
    """Give the body of chunks as far as they are any, and whether the last one came."""
    body = bytearray()
    while size := re.match(rb"([0-9A-Fa-f]+)[ \t]*(?:;[^\n]*)?\r?\n", rest):
        length = int(size[1], 16)
        if length == 0:
            return bytes(body), True
        body += rest[size.end() : size.end() + length]
        behind = re.match(rb"\r?\n", rest[size.end() + length :])
        if behind is None:
            break
        rest = rest[size.end() + length + behind.end() :]
    return bytes(body), False


def _read_events(body: bytes, found: Read) -> None:
    """Read events up to what ends a stream, well or ill."""
    lines = body.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    finished: dict[Any, bool] = {}
    name, data = b"", []
    for line in lines[:-1]:
        if line:
            key, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if key == b"data":
                data.append(value)
            elif key == b"event":
                name = value
            continue
        event, told = b"\n".join(data), bool(data)
        named, name, data = name, b"", []
        if not told:
            continue
        if named != b"error" and event.strip() == b"[DONE]":
            return
        value = _json(event)
        if not isinstance(value, dict) or value.get("error") or named == b"error":
            found.whole = False
            return
        found.values.append(value)
        choices = value.get("choices")
        for choice in choices if isinstance(choices, list) else []:
            if isinstance(choice, dict):
                index = repr(choice.get("index") or 0)
                finished[index] = bool(choice.get("finish_reason")) or finished.get(index, False)
        found.whole = bool(finished) and all(finished.values())


def _json(data: bytes) -> Any:
    """Give the JSON that these bytes are; None where they are none."""
    try:
        return json.loads(data.removeprefix(b"\xef\xbb\xbf").decode(), parse_constant=_refused)
    except (ValueError, RecursionError):
        return None


def _refused(constant: str) -> Any:
    raise ValueError(constant)


# JSON and the message that it became


_NAMES = {("ChatMessage", "content"): "text"}
_KEEPS = "extra_json"


def same(message: Message, value: dict[str, Any], at: str = "") -> str:
    """Say where a message does not say what the JSON says: a key lost, or another value; nothing where it does."""
    fields = message.DESCRIPTOR.fields_by_name
    kept = getattr(message, _KEEPS) if _KEEPS in fields else {}
    for key, item in value.items():
        where = f"{at}.{key}".lstrip(".")
        name = _NAMES.get((message.DESCRIPTOR.name, key), key)
        if item is None:
            continue
        if key in kept:
            if json.loads(kept[key]) != item:
                return f"{where}: {kept[key][:60]} for {item!r:.60}"
        elif name not in fields:
            return f"{where} is lost"
        elif fault := _same_value(getattr(message, name), item, where):
            return fault
    return ""


def _same_value(found: Any, item: Any, where: str) -> str:
    if isinstance(found, Message):
        return same(found, item, where) if isinstance(item, dict) else f"{where}: a message for {item!r:.60}"
    if isinstance(item, list):
        if isinstance(found, str | int | float) or len(found) != len(item):
            return f"{where}: another count"
        pairs = enumerate(zip(found, item, strict=True))
        return next((fault for at, (one, two) in pairs if (fault := _same_value(one, two, f"{where}[{at}]"))), "")
    if isinstance(item, str):
        item = item.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return "" if found == item else f"{where}: {found!r:.60} for {item!r:.60}"


# gRPC over HTTP/2


def grpc_messages(data: bytes, *, preface: bool) -> list[list[bytes]]:
    """Give the messages of each stream, by its DATA frames; what does not parse ends the reading.

    Of a DATA frame that is cut, what came counts: gRPC reads a message as soon as its bytes are there.
    """
    at = data.find(b"SM\r\n\r\n") + 6 if preface else 0
    bodies: dict[int, bytearray] = defaultdict(bytearray)
    while at + 9 <= len(data):
        size, kind, flags = int.from_bytes(data[at : at + 3]), data[at + 3], data[at + 4]
        stream = int.from_bytes(data[at + 5 : at + 9]) & 0x7FFFFFFF
        payload = data[at + 9 : at + 9 + size]
        if len(payload) < size and kind != DATA:
            break
        if kind == DATA:
            bodies[stream] += payload[1 : len(payload) - payload[0]] if flags & PADDED and payload else payload
        at += 9 + size
    return [_messages(bytes(body)) for body in bodies.values()]


def _messages(body: bytes) -> list[bytes]:
    messages, at = [], 0
    while at + 5 <= len(body):
        size = int.from_bytes(body[at + 1 : at + 5])
        if body[at] != 0 or at + 5 + size > len(body):
            break
        messages.append(body[at + 5 : at + 5 + size])
        at += 5 + size
    return messages


def parsed(kind: Any, streams: Sequence[Sequence[bytes]]) -> list[list[Any]]:
    """Give the messages decoded; a stream with one that is none is left out."""
    found = []
    for messages in streams:
        try:
            found.append([kind.FromString(each) for each in messages])
        except Exception:  # noqa: BLE001 - protobuf's own, of either implementation
            continue
    return found
