"""The trace id in a caller's metadata, by W3C Trace Context; needed with and without OpenTelemetry.

https://www.w3.org/TR/trace-context/#traceparent-header
"""

import re
from collections.abc import Iterable
from typing import Final

__all__ = ["find_trace_id"]

_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


def find_trace_id(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Return the trace id of the caller's `traceparent`, or "" if there is none or it is malformed."""
    for key, value in metadata:
        if key == "traceparent" and isinstance(value, str) and (match := _TRACEPARENT.fullmatch(value)):
            return match[1]
    return ""
