"""Checks of a bridge that was attacked: it answers a good call, and its log has nothing but lines of calls."""

import json
import re
import uuid
from collections.abc import Collection
from typing import Final

from tests.kit.client import Bridge, chat

__all__ = ["ANSWER_S_MAX", "GOOD_MODEL", "answer_good_call", "is_expected"]

GOOD_MODEL: Final = "echo"
ANSWER_S_MAX: Final = 30.0
"""Of a good call beside an attack: far beyond what a busy machine takes. The torture measures how fast it is."""

_CORE_LINES: Final = re.compile(
    r"E\d{4} .* hpack_parser\.cc:\d+\] Error parsing '[^']*' metadata: [a-z ]+"
    r"|I\d{4} .* chttp2_transport\.cc:\d+\] \S+: Got goaway .*"
    r"|WARNING: All log messages before absl.*"
)
"""What grpc's core logs, past any setting of ours: the name of a header that it can't read, never its value, and a
GOAWAY with an error."""


_LIFE: Final = frozenset({"started", "draining", "stopped"})
"""Events of a process's life that are no harm."""
_COUNTED: Final = frozenset(
    {
        "connections ended for what their callers did",
        "a web page may not call: its origin is not in web_allowed_origins",
    }
)
"""What the bridge says of hostile callers, once for many."""


async def answer_good_call(bridge: Bridge) -> str:
    """Make a good call, which must be answered, and return its id."""
    request_id = str(uuid.uuid4())
    answer = await bridge.ask(chat(model=GOOD_MODEL), timeout=ANSWER_S_MAX, metadata=[("x-request-id", request_id)])
    assert answer.text == "You said: hello there", answer.failure
    return request_id


def is_expected(line: str, *, unexpected_codes: Collection[str] = ("INTERNAL", "UNKNOWN")) -> bool:
    """Whether a line of the log is of the process's life, or a call's with none of these codes and no fault in it."""
    if _CORE_LINES.fullmatch(line):
        return True
    try:
        record = json.loads(line)
    except ValueError:
        return False
    if record["event"] in _LIFE | _COUNTED:
        return True
    if record["event"] != "call":
        return False
    is_transports = not record.get("reason")  # a message that can't be read is INTERNAL to gRPC, and no bug
    return (record["code"] not in unexpected_codes or is_transports) and "fault" not in record
