"""Readers of bytes from a wire that share no code with the bridge: an HTTP/1.1 answer, its events, gRPC frames.

Chaos judges by them: an OK is right if these bytes, as they were passed on, are a whole completion, and the caller's
messages have the same content.
"""

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import h11
from google.protobuf.message import Message

__all__ = ["Reading", "find_difference", "is_whole_response", "parse_streams", "read", "split_messages"]

DATA, PADDED = 0, 8


# HTTP/1.1


@dataclass
class Reading:
    """An answer as it was read. `is_whole`: it is a whole completion; `values` are its JSON objects, in order.

    `status` is 0 if there is none. `lenient` is the objection of a strict reader of HTTP, if any: bytes that it rejects
    are read again as lenient clients read them.
    """

    status: int = 0
    is_whole: bool = False
    values: list[dict[str, Any]] = field(default_factory=list)
    lenient: str = ""


def is_whole_response(data: bytes) -> bool:
    """Whether these are the bytes of a whole answer, as a good upstream writes them."""
    head, end, body = data.partition(b"\r\n\r\n")
    if not end:
        return False
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(body) >= int(line.partition(b":")[2])
    return body.endswith(b"0\r\n\r\n")


def read(data: bytes, *, is_closed: bool, stream: bool) -> Reading:
    """Read the bytes passed on; `is_closed`: the connection was closed after them."""
    found = Reading()
    try:
        answer = _read_strictly(data, is_closed=is_closed)
    except h11.RemoteProtocolError as error:
        found.lenient = str(error)
        answer = _read_leniently(data, is_closed=is_closed)
    found.status = answer.status
    if not 200 <= answer.status < 300:
        return found
    if stream:
        if answer.status == 200 and answer.kind.partition(";")[0].strip().lower() == "text/event-stream":
            _read_events(answer.body, found)
    elif answer.is_complete:
        value = _parse_json(answer.body)
        if isinstance(value, dict) and not value.get("error") and value.get("choices") is not None:
            found.values, found.is_whole = [value], True
    return found


class _Answer(NamedTuple):
    """An HTTP answer: `status` is 0 if there is none."""

    status: int = 0
    kind: str = ""
    body: bytes = b""
    is_complete: bool = False


def _read_strictly(data: bytes, *, is_closed: bool) -> _Answer:
    """Read by the RFC. Raises h11.RemoteProtocolError."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1024 * 1024)
    connection.send(h11.Request(method="POST", target="/", headers=[("host", "x"), ("content-length", "0")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    if is_closed:
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
            case _:  # its end, or the end of the bytes
                return _Answer(status, kind, bytes(body), isinstance(event, h11.EndOfMessage))


def _read_leniently(data: bytes, *, is_closed: bool) -> _Answer:
    """Read as llhttp does in clients: any header, LF for CRLF, blanks around a chunk's size."""
    head, _, rest = re.sub(rb"\r?\n\r?\n", b"\n\n", data, count=1).partition(b"\n\n")
    first, *lines = head.split(b"\n")
    status = re.match(rb"HTTP/1\.[01] (\d{3})", first)
    if status is None:
        return _Answer()
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
    kind = headers.get(b"content-type", b"").decode("latin-1")
    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        return _Answer(int(status[1]), kind, *_join_chunks(rest))
    length = headers.get(b"content-length", b"")
    if length.isdigit():
        return _Answer(int(status[1]), kind, rest[: int(length)], len(rest) >= int(length))
    return _Answer(int(status[1]), kind, rest, is_closed)


def _join_chunks(rest: bytes) -> tuple[bytes, bool]:
    """Return the body of the chunks as far as they are valid, and whether the last one came."""
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


def _read_events(body: bytes, found: Reading) -> None:
    """Read events up to the end of the stream or its failure."""
    lines = body.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    is_finished: dict[Any, bool] = {}
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
        event, has_data = b"\n".join(data), bool(data)
        event_name, name, data = name, b"", []
        if not has_data:
            continue
        if event_name != b"error" and event.strip() == b"[DONE]":
            return
        value = _parse_json(event)
        if not isinstance(value, dict) or value.get("error") or event_name == b"error":
            found.is_whole = False
            return
        found.values.append(value)
        choices = value.get("choices")
        for choice in choices if isinstance(choices, list) else []:
            if isinstance(choice, dict):
                index = repr(choice.get("index") or 0)
                is_finished[index] = bool(choice.get("finish_reason")) or is_finished.get(index, False)
        found.is_whole = bool(is_finished) and all(is_finished.values())


def _parse_json(data: bytes) -> Any:
    """Return the JSON value of these bytes; None if they are none."""
    try:
        return json.loads(data.removeprefix(b"\xef\xbb\xbf").decode(), parse_constant=_reject_constant)
    except (ValueError, RecursionError):
        return None


def _reject_constant(constant: str) -> Any:
    raise ValueError(constant)


# JSON and the message that it became


_NAMES = {("ChatMessage", "content"): "text"}
_KEEPS = "extra_json"


def find_difference(message: Message, value: dict[str, Any], at: str = "") -> str:
    """Return where a message differs from the JSON: a lost key, or another value; "" if it does not."""
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
        elif fault := _compare_values(getattr(message, name), item, where):
            return fault
    return ""


def _compare_values(found: Any, item: Any, where: str) -> str:
    if isinstance(found, Message):
        return find_difference(found, item, where) if isinstance(item, dict) else f"{where}: a message for {item!r:.60}"
    if isinstance(item, list):
        if isinstance(found, str | int | float) or len(found) != len(item):
            return f"{where}: another count"
        pairs = enumerate(zip(found, item, strict=True))
        return next((fault for at, (one, two) in pairs if (fault := _compare_values(one, two, f"{where}[{at}]"))), "")
    if isinstance(item, str):
        item = item.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return "" if found == item else f"{where}: {found!r:.60} for {item!r:.60}"


# gRPC over HTTP/2


def split_messages(data: bytes, *, preface: bool) -> list[list[bytes]]:
    """Return the messages of each stream, by its DATA frames; bytes that do not parse end the reading.

    The bytes of a DATA frame that was cut count: gRPC reads a message as soon as its bytes are there.
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
    return [_cut_messages(bytes(body)) for body in bodies.values()]


def _cut_messages(body: bytes) -> list[bytes]:
    messages, at = [], 0
    while at + 5 <= len(body):
        size = int.from_bytes(body[at + 1 : at + 5])
        if body[at] != 0 or at + 5 + size > len(body):
            break
        messages.append(body[at + 5 : at + 5 + size])
        at += 5 + size
    return messages


def parse_streams(kind: Any, streams: Sequence[Sequence[bytes]]) -> list[list[Any]]:
    """Return the messages decoded, without the streams that have a broken one."""
    found = []
    for messages in streams:
        try:
            found.append([kind.FromString(each) for each in messages])
        except Exception:  # noqa: BLE001 - protobuf's own, of either implementation
            continue
    return found
