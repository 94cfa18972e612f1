"""The ways in which an answer fails: cut short, silent, incomplete, an error, of another shape.

One function each, from a call to steps. Names, defaults and helps of what a test can ask for stand in the table of
`scenarios`.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from email.utils import formatdate
from typing import Any

from bridge.emulator.answers import DONE, JSON, Call, encode_event
from bridge.emulator.requests import refuse_value
from bridge.emulator.steps import (
    Disconnect,
    JsonObject,
    Step,
    Wait,
    Write,
    build_error,
    choose_error_type,
    encode_json,
    send,
    send_json,
)

FAILURES_MAX = 1_000
"""Bodies whose failures `fail_at_first` counts."""


def stall(call: Call, *, after: int, headers: int) -> Iterator[Step]:
    """Send so many events, or not even headers, and nothing more."""
    if headers:
        yield from call.send_beginning(after)
    yield Wait(math.inf)


def break_off(call: Call, *, after: int, reset: bool) -> Iterator[Step]:
    """Disconnect after so many events; below 0, before the headers."""
    if after >= 0:
        yield from call.send_beginning(after)
    yield Disconnect(reset)


def break_http_chunk(call: Call, *, after: int) -> Iterator[Step]:
    """Disconnect in the middle of an HTTP chunk, after so many events."""
    yield from call.send_beginning(after)
    yield Write(b'FF\r\ndata: {"id":', framed=False)
    yield Disconnect(reset=False)


def omit_finish_reason(call: Call) -> Iterator[Step]:
    """Send finish_reason null to the end."""
    return call.send_edited(lambda value: value["choices"][0].update(finish_reason=None))


def insert_garbage(call: Call, *, after: int) -> Iterator[Step]:
    """Insert an event that is not JSON; the body of a unary answer is not JSON."""
    if not call.stream:
        return send(200, b"{not json", JSON)
    return call.send_events(_insert(call, after, b"data: {not json\n\n"))


def _insert(call: Call, after: int, event: bytes) -> list[bytes]:
    *parts, last, done = call.split_body()
    return [*parts[:after], event, *parts[after:], last, done]


def insert_error(
    call: Call,
    *,
    after: int,
    message: str,
    status: int,
    type_: str,
    code: str,
    named: int,
    flat: int,
    raw: int,
) -> Iterator[Step]:
    """Insert an error event, in one of several forms."""
    error = build_error(message, type_ or "server_error", _parse_code(code), None)
    error |= {"status": status} if status else {}
    value: JsonObject = {"error": message if flat else error}
    if raw:
        value["ollm_raw_chunk"] = "{not json"
    if not call.stream:
        return send_json(200, value)
    event = b"event: error\n" + encode_event(error) if named else encode_event(value)
    return call.send_events(_insert(call, after, event))


def _parse_code(code: str) -> str | int | None:
    return int(code) if code.isascii() and code.isdigit() else code or None


_ENVELOPES: Mapping[str, Callable[[JsonObject], Any]] = {
    "full": lambda error: {"error": error},
    "bare": lambda error: {"error": {"message": error["message"]}},
    "flat": lambda error: {"error": error["message"]},
    "detail": lambda error: {"detail": error["message"]},
    "message": lambda error: {"message": error["message"]},
    "none": lambda _: {},
    "html": lambda error: f"<html><body><h1>{error['message']}</h1></body></html>",
    "empty": lambda _: "",
}


def fail(
    _call: Call,
    *,
    status: int,
    envelope: str,
    message: str,
    type_: str,
    code: str,
    param: str,
    retry_after: str,
    retry_after_ms: str,
    retry_date_s: int,
    size: int,
    raw: int,
) -> Iterator[Step]:
    """Send an error status with one of the envelopes in use."""
    text = "错" * (size // 3) if size else message
    error = build_error(text, type_ or choose_error_type(status), _parse_code(code), param or None)
    if envelope not in _ENVELOPES:
        refuse_value("envelope", ", ".join(_ENVELOPES), envelope)
    value = _ENVELOPES[envelope](error)
    if raw and isinstance(value, dict):
        value["ollm_raw_response"] = [{"provider_type": "emulator", "api_type": "chat_completions", "data": "{}"}]
    if retry_date_s >= 0:
        retry_after = formatdate(time.time() + retry_date_s, usegmt=True)
    waits = [("retry-after", retry_after), ("retry-after-ms", retry_after_ms)]
    content_type = "text/html" if isinstance(value, str) else "application/json"
    body = value.encode() if isinstance(value, str) else encode_json(value)
    headers = [("content-type", content_type)] if body else []
    return send(status if 200 <= status <= 999 else 500, body, *headers, *(wait for wait in waits if wait[1]))


def fail_at_first(call: Call, *, times: int, status: int, retry_after_ms: str) -> Iterator[Step]:
    """Fail so many times in a row for the same body, then answer; and so on from the start."""
    failures = call.memory.failures
    count = failures.pop(call.received, 0)
    if count >= times:
        return call.send()
    failures[call.received] = count + 1
    while len(failures) > FAILURES_MAX:
        failures.popitem(last=False)
    error = build_error("try again", choose_error_type(status), None, None)
    headers = [("retry-after-ms", retry_after_ms)] if retry_after_ms else []
    return send_json(status if 200 <= status <= 999 else 500, {"error": error}, *headers)


def reset_next(call: Call, *, connects: int) -> Iterator[Step]:
    """Answer; the next so many connections are reset as soon as they open."""
    call.memory.resets_due = connects
    return call.send()


def drop_choices(call: Call) -> Iterator[Step]:
    """Leave `choices` out, everywhere."""
    return call.send_edited(lambda value: value.pop("choices"))


def send_page(_call: Call, *, status: int) -> Iterator[Step]:
    """Send an HTML page."""
    return send(status, b"<html><body>Welcome to the proxy</body></html>", ("content-type", "text/html"))


def send_unary(call: Call, *, in_200: int) -> Iterator[Step]:
    """Send a unary answer also to a call that asked for a stream; an error if `in_200`."""
    error = build_error("the provider failed", "server_error", "provider_failed", None)
    return send_json(200, {"error": error} if in_200 else call.build_reply())


def send_array(call: Call) -> Iterator[Step]:
    """Send an array in place of the object."""
    return call.send_events([encode_event([1, 2]), DONE]) if call.stream else send_json(200, [1, 2])


def redirect(_call: Call, *, status: int, location: str) -> Iterator[Step]:
    """Send a redirect."""
    return send(status, b"", ("location", location))
