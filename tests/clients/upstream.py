"""What the gateway must have seen, where the client's word is not enough. clients/CASES.md has the rules."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

REFUSED = (
    "scenario::error?status=400&code=context_length_exceeded&param=messages[0].content"
    "&message=the+prompt+is+too+long&retry_after=2.5&raw=1"
)
EARLY_S = 0.01  # what a client's timer may be early by

Exchanges = Sequence[Mapping[str, Any]]


def of_model(exchanges: Exchanges, model: str) -> Exchanges:
    """The exchanges of one model."""
    return [exchange for exchange in exchanges if (exchange["json"] or {}).get("model") == model]


def was_closed(exchanges: Exchanges, model: str) -> None:
    """The one exchange of the model was broken off while its client still lived: before the client's last request."""
    found = of_model(exchanges, model)
    assert len(found) == 1, f"expected one request of {model}, found {len(found)}"
    (exchange,) = found
    assert not exchange["finished"], f"{model}: the answer was taken whole"
    assert exchange["closed_at"] is not None, f"{model}: the connection to the gateway is still open"
    late_s = exchange["closed_at"] - exchanges[-1]["received_at"]
    assert late_s < 0, f"{model}: the connection was closed {late_s:.3f} s after the client's last request"


def was_repeated(exchanges: Exchanges, model: str, *, times: int, pause_s: float = 0.0) -> None:
    """So many requests of the model came, with a pause between them."""
    received = [exchange["received_at"] for exchange in of_model(exchanges, model)]
    assert len(received) == times, f"expected {times} requests of {model}, found {len(received)}"
    pauses = [after - before for before, after in itertools.pairwise(received)]
    assert all(pause >= pause_s - EARLY_S for pause in pauses), f"expected pauses of {pause_s} s, found {pauses}"


def retry(exchanges: Exchanges) -> None:
    """The refusals were repeated when the gateway asked for it, and the one that forbids it was not."""
    was_repeated(exchanges, "scenario::flaky?times=2&status=429&retry_after_ms=400", times=3, pause_s=0.4)
    was_repeated(exchanges, "scenario::rate_limited?retry_after=61", times=1)


SAW: Mapping[str, Callable[[Exchanges], None]] = {
    "deadline": lambda exchanges: was_closed(exchanges, "scenario::stall?after=2"),
    "cancel": lambda exchanges: was_closed(exchanges, "scenario::stall?after=3"),
    "error": lambda exchanges: was_repeated(exchanges, REFUSED, times=1),
    "retry": retry,
}
