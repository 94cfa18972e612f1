"""How long an answer may wait for a caller that takes nothing of it (`write_stall_timeout_s`).

The limit holds for every message, of calls and of the services beside them: whatever flow control may hold back.
"""

from bridge.core.errors import BridgeError, Code
from bridge.server.call import RpcCall
from bridge.server.time_limit import TimeLimit
from bridge.settings import Settings
from ollmbridge.v1 import error_details_pb2 as details_pb2

__all__ = ["limit_write_time"]


def limit_write_time(settings: Settings) -> TimeLimit[RpcCall]:
    """Return the limit, which interrupts a call that exceeds it."""
    limit_s = settings.write_stall_timeout_s
    message = f"the caller took nothing of the answer for {limit_s:g} s (write_stall_timeout_s)"
    failure = BridgeError(Code.DEADLINE_EXCEEDED, details_pb2.ERROR_REASON_UPSTREAM_TIMEOUT, message)
    return TimeLimit(limit_s, lambda call: call.interrupt(failure))
