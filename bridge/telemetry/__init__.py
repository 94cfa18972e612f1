"""What operators see of calls: the log, metrics, the list of failures, traces.

The boundary makes one CallRecord a call, at its end. The log, the metrics and the list of failures are an Observer
each, in a module of their own. A trace must be there from the call's start, since the upstream is sent its context, so
it is no observer: the boundary starts it and calls it at each step.
"""

from bridge.telemetry.record import NOT_FAILURES, CallRecord, Observer
from bridge.telemetry.trace_context import find_trace_id

__all__ = ["NOT_FAILURES", "CallRecord", "Observer", "find_trace_id"]
