"""An HTTP/1.1 answer, read a second time: by the RFC, or as lenient clients do. No code of the bridge's."""

import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import h11

from tests.kit.oracle import judge_stream, parse_document

__all__ = ["Reading", "is_whole_response", "read"]


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
            judged = judge_stream(answer.body, is_lost=not (answer.is_complete and answer.is_framed))
            found.values, found.is_whole = [parse_document(each) for each in judged.chunks], judged.end == "whole"
    elif answer.is_complete:
        found.values = _parse_completion(answer.body)
        found.is_whole = bool(found.values)
    return found


def _parse_completion(body: bytes) -> list[dict[str, Any]]:
    """Return the one value of a body that is a completion; none if it is not."""
    try:
        value = parse_document(body.removeprefix(b"\xef\xbb\xbf"))
    except ValueError:
        return []
    is_completion = isinstance(value, dict) and not value.get("error") and value.get("choices") is not None
    return [value] if is_completion else []


class _Answer(NamedTuple):
    """An HTTP answer: `status` is 0 if there is none. `is_framed`: it tells where its body ends."""

    status: int = 0
    kind: str = ""
    body: bytes = b""
    is_complete: bool = False
    is_framed: bool = True


def _read_strictly(data: bytes, *, is_closed: bool) -> _Answer:
    """Read by the RFC. Raises h11.RemoteProtocolError."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1024 * 1024)
    connection.send(h11.Request(method="POST", target="/", headers=[("host", "x"), ("content-length", "0")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    if is_closed:
        connection.receive_data(b"")
    status, kind, body, is_framed = 0, "", bytearray(), True
    while True:
        event: Any = connection.next_event()
        match event:
            case h11.Response():
                headers = dict(event.headers)
                status, kind = event.status_code, headers.get(b"content-type", b"").decode("latin-1")
                is_framed = not headers.keys().isdisjoint({b"content-length", b"transfer-encoding"})
            case h11.Data():
                body += event.data
            case h11.InformationalResponse():
                pass
            case _:  # its end, or the end of the bytes
                return _Answer(status, kind, bytes(body), isinstance(event, h11.EndOfMessage), is_framed)


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
    return _Answer(int(status[1]), kind, rest, is_closed, is_framed=False)


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
