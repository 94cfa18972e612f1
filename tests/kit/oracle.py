"""The standards and the contract, read a second time and in the simplest way, to judge the bridge by.

It uses nothing of `bridge`: server-sent events follow the WHATWG's rules over whole bytes, JSON is the standard
library's, and docs/behavior.md says what an error is and when a completion is whole.
"""

import itertools
import json
import re
from typing import Any, Final, NamedTuple, NoReturn

from google.protobuf.message import Message

__all__ = [
    "EQUAL_DEPTH_MAX",
    "Stream",
    "find_difference",
    "is_error",
    "is_within_event",
    "judge_reply",
    "judge_stream",
    "measure_depth",
    "parse_document",
    "split_events",
]

EQUAL_DEPTH_MAX = 64
"""Levels of JSON up to which every parser must agree; beyond, each may have a limit of its own."""


def split_events(stream: bytes, *, is_ended: bool = False) -> list[tuple[str, bytes]]:
    """Return name and data of each event: its blank line has come, or the stream `is_ended` and it is the last."""
    lines = split_lines(stream)
    return read_events([*lines, b""] if is_ended else lines[:-1])[0]


def is_within_event(stream: bytes) -> bool:
    """Whether a stream ends within a line, or behind a line of an event that lacks its blank line."""
    *lines, last = split_lines(stream)
    return bool(last) or read_events(lines)[1]


def read_events(lines: list[bytes]) -> tuple[list[tuple[str, bytes]], bool]:
    """Return the events, and whether one has begun behind them."""
    found = []
    name, data, error = "", None, None
    for line in lines:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if not line:
            found += [] if data is None else [(name, data)]
            found += [] if error is None else [("error", error)]
            name, data, error = "", None, None
        elif field == b"data":
            data = value if data is None else data + b"\n" + value
        elif field == b"event":
            name = value.decode("utf-8", "replace")
        elif field == b"error" and value[:1] in (b"{", b"[", b'"'):
            error = value
    return found, bool(name) or data is not None or error is not None


def split_lines(stream: bytes) -> list[bytes]:
    """Return the lines; the last has no end."""
    return re.split(rb"\r\n|\n|\r", stream.removeprefix(b"\xef\xbb\xbf"))


def find_stray_text(stream: bytes, *, is_ended: bool) -> str:
    """Return the lines of no known field, at most STRAY_BYTES_MAX of them."""
    fields = (b"", b"id", b"retry", b"data", b"event", b"error")
    *lines, last = split_lines(stream)
    if is_ended or not any(field.startswith(last) for field in fields):
        lines.append(last)
    found = b""
    for line in lines:
        field, _, value = line.partition(b":")
        is_error = field == b"error" and value.removeprefix(b" ")[:1] in (b"{", b"[", b'"')
        if (field not in fields or (field == b"error" and not is_error)) and len(found) < STRAY_BYTES_MAX:
            found += line[: STRAY_BYTES_MAX - len(found)] + b"\n"
    return found.decode("utf-8", "replace")


def parse_document(text: bytes) -> Any:
    """Return the value of one JSON document. Raises ValueError if the text is none."""
    try:
        return json.loads(text.decode(), parse_constant=_reject_constant)
    except RecursionError:
        raise ValueError("nests too deeply") from None


def _reject_constant(word: str) -> NoReturn:
    raise ValueError(word)


def measure_depth(text: bytes) -> int:
    """Return how deep documents nest; in a text that is no JSON, as much as brackets within strings make of it."""
    return max(_count_levels(text), _count_levels(_STRING.sub(b"", text)))


def _count_levels(text: bytes) -> int:
    return max(itertools.accumulate(_STEPS.get(byte, 0) for byte in text), default=0)


_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


class Stream(NamedTuple):
    """The required result of a stream's bytes: the chunks' documents, and how it ends.

    `end` is "whole", "incomplete", "lost" (with its connection), "error" (the upstream sent one), "invalid" (an event
    is no chunk, or nothing is one).
    """

    chunks: list[bytes]
    end: str


def judge_stream(stream: bytes, *, is_lost: bool) -> Stream:
    """Judge a stream that ended after these bytes, as its framing promised or because the connection `is_lost`."""
    chunks: list[bytes] = []
    finished: dict[Any, str] = {}
    stray = find_stray_text(stream, is_ended=not is_lost)
    has_stray_error = is_error(read_first_document(stray))
    whole_events = len(split_events(stream))
    has_events = has_partial = False
    is_cut = is_within_event(stream)
    for number, (name, data) in enumerate(split_events(stream, is_ended=not is_lost)):
        is_settled = bool(finished) and set(finished.values()) == {"finished"}
        if name.lower() == "error":
            return Stream(chunks, "error")
        if not data.strip() or name.lower() in KEEP_ALIVES:
            continue
        has_events = True
        if data.strip() == b"[DONE]":
            # What is outside of the events counts as far as it came before.
            end = stream_before_done(stream)
            if is_error(read_first_document(find_stray_text(end, is_ended=False))):
                return Stream(chunks, "error")
            return Stream(chunks, "whole" if finished and "open" not in finished.values() else "incomplete")
        try:
            value = parse_document(data)
        except ValueError:
            value = None
        if is_error(value):
            return Stream(chunks, "error")
        if not isinstance(value, dict):
            if is_settled:
                continue
            if number < whole_events:
                return Stream(chunks, "invalid")
            has_partial = True
            continue
        choices = value.get("choices") or ([] if value.get("choices") is None else value["choices"])
        if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
            return Stream(chunks, "invalid")
        if any(reports_failure(choice.get("finish_reason")) for choice in choices):
            return Stream(chunks, "error")
        chunks.append(data)
        is_cut = is_cut and number < whole_events
        for choice in choices:
            track_choice(finished, choice)
    if has_stray_error:
        return Stream(chunks, "error")
    if finished and set(finished.values()) == {"finished"}:
        return Stream(chunks, "whole")
    if is_lost:
        return Stream(chunks, "lost")
    if stray and not has_events and not has_partial:
        return Stream(chunks, "invalid")
    is_explicit = not (is_cut or stray)
    return Stream(chunks, "whole" if is_explicit and finished and "open" not in finished.values() else "incomplete")


def judge_reply(value: Any) -> bool:
    """Judge the value of a unary answer: whether it is a whole completion."""
    choices = value.get("choices") if isinstance(value, dict) else None
    if is_error(value) or not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        return False
    if any(reports_failure(choice.get("finish_reason")) for choice in choices):
        return False
    finished: dict[Any, str] = {}
    for choice in choices:
        track_choice(finished, choice)
    return bool(finished) and "open" not in finished.values()


def stream_before_done(stream: bytes) -> bytes:
    """Return a stream up to the end of its first [DONE]; events end only where a line does."""
    line_ends = re.compile(rb"[\r\n]").finditer(stream, max(stream.find(b"[DONE]"), 0))
    for end in (found.end() for found in line_ends):
        events = split_events(stream[:end])
        if events and events[-1][0].lower() not in {"error", *KEEP_ALIVES} and events[-1][1].strip() == b"[DONE]":
            return stream[:end]
    return stream


KEEP_ALIVES = {"ping", "heartbeat", "keep-alive", "keepalive"}
STRAY_BYTES_MAX = 16 * 1024


def track_choice(finished: dict[Any, str], choice: dict[str, Any]) -> None:
    """Note that a choice is open, finished, or has text behind its finish_reason."""
    index = choice.get("index") or 0
    if isinstance(index, float) and index.is_integer():
        index = int(index)
    if isinstance(index, str) and re.fullmatch(r"[0-9]{1,9}", index):
        index = int(index)
    key = json.dumps(index) if isinstance(index, int | float | str) else type(index).__name__
    key = "bool" if isinstance(index, bool) else key
    state = finished.get(key, "open")
    parts = [choice.get("delta"), choice.get("message")]
    if state != "open" and any(
        item and name != "role" for part in parts if isinstance(part, dict) for name, item in part.items()
    ):
        state = "more"
    reason = choice.get("finish_reason")
    is_reason = reason.strip().lower() not in {"", "none", "null"} if isinstance(reason, str) else bool(reason)
    finished[key] = "finished" if state == "open" and is_reason else state


def reports_failure(reason: Any) -> bool:
    """Whether a finish_reason says that the completion failed."""
    words = {"abort", "aborted", "canceled", "cancelled", "failed", "failure", "insufficient_system_resource"}
    return isinstance(reason, str) and (reason.strip().lower() in words or reason.strip().lower().endswith("error"))


def read_first_document(text: str) -> Any:
    """Return the value of the document that a text begins with, or None."""
    try:
        value, _ = json.JSONDecoder(parse_constant=_reject_constant).raw_decode(text.lstrip())
    except (ValueError, RecursionError):
        return None
    return value


def is_error(value: Any) -> bool:
    """Whether the value of a successful answer, or of an event, is an error or has one."""
    if isinstance(value, list):
        return bool(value) and isinstance(value[0], dict) and is_error(value[0])
    if not isinstance(value, dict):
        return False
    base = value.get("base_resp")
    if says_something(value.get("error")) or "error" in (value.get("object"), value.get("type")):
        return True
    if isinstance(base, dict) and base.get("status_code"):
        return True
    choices = value.get("choices")
    if isinstance(choices, list):
        holders = [part for choice in choices if isinstance(choice, dict) for part in list_holders(choice)]
        return any(says_something(holder.get("error")) for holder in holders)
    words = ["errors", "detail", "error_message", "error_msg", "errorMessage", "error_description"]
    if any(value.get(key) for key in ("code", "status", "status_code", "statusCode", "error_code", "type")):
        words += ["message", "msg", "Message"]
    return choices is None and any(isinstance(value.get(key), str | list) and value[key] for key in words)


def list_holders(choice: dict[str, Any]) -> list[dict[str, Any]]:
    parts = (choice, choice.get("delta"), choice.get("message"))
    return [part for part in parts if isinstance(part, dict)]


def says_something(value: Any) -> bool:
    """Whether a value has a text, a number other than 0, or true, at any level."""
    if isinstance(value, dict):
        return any(map(says_something, value.values()))
    if isinstance(value, list):
        return any(map(says_something, value))
    return bool(value)


# JSON and the message that it became


_NAMES: Final = {("ChatMessage", "content"): "text"}
_KEEPS: Final = "extra_json"


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
