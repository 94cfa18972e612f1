"""Limits on the time of calls: a call that exceeds one is interrupted, and its status names the setting."""

from bridge.core.errors import BridgeError, Code
from bridge.server.call import RpcCall
from bridge.server.time_limit import TimeLimit
from bridge.settings import Settings
from ollmbridge.v1 import error_details_pb2 as details_pb2

__all__ = ["limit_time", "limit_write_time"]


def limit_time(limit_s: float, message: str) -> TimeLimit[RpcCall]:
    """Return a limit that interrupts a call with DEADLINE_EXCEEDED and this message."""
    failure = BridgeError(Code.DEADLINE_EXCEEDED, details_pb2.ERROR_REASON_UPSTREAM_TIMEOUT, message)
    return TimeLimit(limit_s, lambda call: call.interrupt(failure))


def limit_write_time(settings: Settings) -> TimeLimit[RpcCall]:
    """Return the limit on how long an answer may wait for a caller that takes nothing of it.

    It holds for every message, of calls and of the services beside them: whatever flow control may hold back.
    """
    limit_s = settings.write_stall_timeout_s
    return limit_time(limit_s, f"the caller took nothing of the answer for {limit_s:g} s (write_stall_timeout_s)")
