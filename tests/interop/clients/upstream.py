"""The exchanges that the gateway must have, for cases that a client can't prove. clients/CASES.md has the rules."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

REFUSED = (
    "scenario::error?status=400&code=context_length_exceeded&param=messages[0].content"
    "&message=the+prompt+is+too+long&retry_after=2.5&raw=1"
)
EARLY_S = 0.01  # a client's timer may be early by this much

Exchanges = Sequence[Mapping[str, Any]]


def select_model(exchanges: Exchanges, model: str) -> Exchanges:
    """Return the exchanges of one model."""
    return [exchange for exchange in exchanges if (exchange["json"] or {}).get("model") == model]


def check_closed(exchanges: Exchanges, model: str) -> None:
    """Check that the bridge closed the model's one exchange before the client's last request."""
    found = select_model(exchanges, model)
    assert len(found) == 1, f"expected one request of {model}, found {len(found)}"
    (exchange,) = found
    assert not exchange["finished"], f"{model}: the answer was read to its end"
    assert exchange["closed_at"] is not None, f"{model}: the connection to the gateway is still open"
    late_s = exchange["closed_at"] - exchanges[-1]["received_at"]
    assert late_s < 0, f"{model}: the connection was closed {late_s:.3f} s after the client's last request"


def check_attempts(exchanges: Exchanges, model: str, *, times: int, pause_s: float = 0.0) -> None:
    """Check the number of the model's requests, and the pause between them."""
    received = [exchange["received_at"] for exchange in select_model(exchanges, model)]
    assert len(received) == times, f"expected {times} requests of {model}, found {len(received)}"
    pauses = [after - before for before, after in itertools.pairwise(received)]
    assert all(pause >= pause_s - EARLY_S for pause in pauses), f"expected pauses of {pause_s} s, found {pauses}"


def check_retry(exchanges: Exchanges) -> None:
    """Check that refusals were retried after the gateway's wait, except the one that forbids it."""
    check_attempts(exchanges, "scenario::flaky?times=2&status=429&retry_after_ms=400", times=3, pause_s=0.4)
    check_attempts(exchanges, "scenario::flaky?times=1&status=503", times=2)
    check_attempts(exchanges, "scenario::rate_limited?retry_after=61", times=1)


CHECKS: Mapping[str, Callable[[Exchanges], None]] = {
    "deadline": lambda exchanges: check_closed(exchanges, "scenario::stall?after=2"),
    "cancel": lambda exchanges: check_closed(exchanges, "scenario::stall?after=3"),
    "error": lambda exchanges: check_attempts(exchanges, REFUSED, times=1),
    "retry": check_retry,
}
