"""What must hold of a bridge that was attacked: it answers a good call, and its log has nothing but lines of calls."""

import json
import re
import uuid
from collections.abc import Collection
from typing import Final

from tests.conftest import Bridge, chat

__all__ = ["ANSWER_S_MAX", "answer_good_call", "is_expected"]

ANSWER_S_MAX: Final = 30.0
"""Of a good call beside an attack: far beyond what a busy machine takes. The torture measures how fast it is."""

_CORE_LINES: Final = re.compile(
    r"E\d{4} .* hpack_parser\.cc:\d+\] Error parsing '[^']*' metadata: [a-z ]+"
    r"|I\d{4} .* chttp2_transport\.cc:\d+\] \S+: Got goaway .*"
    r"|WARNING: All log messages before absl.*"
)
"""What grpc's core logs, past any setting of ours: the name of a header that it can't read, never its value, and a
GOAWAY with an error."""


async def answer_good_call(bridge: Bridge) -> str:
    """Make a good call, which must be answered, and return its id."""
    request_id = str(uuid.uuid4())
    answer = await bridge.ask(chat(), timeout=ANSWER_S_MAX, metadata=[("x-request-id", request_id)])
    assert answer.text == "You said: hello there", answer.failure
    return request_id


def is_expected(line: str, *, unexpected_codes: Collection[str] = ("INTERNAL", "UNKNOWN")) -> bool:
    """Whether a line of the log is a call's, with none of these codes and no fault of the bridge in it."""
    if _CORE_LINES.fullmatch(line):
        return True
    try:
        record = json.loads(line)
    except ValueError:
        return False
    return record["event"] == "call" and record["code"] not in unexpected_codes and "fault" not in record
