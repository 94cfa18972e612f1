"""The exchanges at the gateway reveal a client that does not do what it prints."""

import pytest

from tests.interop.clients import upstream

FLAKY = "scenario::flaky?times=2&status=429&retry_after_ms=400"
LARGE = "scenario::flaky?times=1&status=503"
LIMITED = "scenario::rate_limited?retry_after=61"
STALL = "scenario::stall?after=3"


def create_exchange(model, received_at, closed_at=None, *, finished=True):
    return {"json": {"model": model}, "received_at": received_at, "closed_at": closed_at, "finished": finished}


def create_interrupted(closed_at):
    return [create_exchange(STALL, 1.0, closed_at, finished=False), create_exchange("later", 2.0)]


def test_call_that_is_closed_before_the_last_request_is_cancelled():
    upstream.CHECKS["cancel"](create_interrupted(1.5))


@pytest.mark.parametrize(
    ("exchanges", "text"),
    [
        ([], "expected one request"),
        (create_interrupted(None), "is still open"),
        (create_interrupted(2.5), "0.500 s after the client's last request"),
        ([create_exchange(STALL, 1.0, 1.5), create_exchange("later", 2.0)], "was read to its end"),
        ([*create_interrupted(1.5), *create_interrupted(1.5)], "found 2"),
    ],
    ids=["no request", "left open", "closed at the client's end", "read to its end", "retried"],
)
def test_call_that_is_not_cancelled_fails(exchanges, text):
    with pytest.raises(AssertionError, match=text):
        upstream.CHECKS["cancel"](exchanges)


def create_attempts(*times_s, large=2, limited=1):
    first = [create_exchange(FLAKY, at) for at in times_s]
    return first + [create_exchange(LARGE, 8.0)] * large + [create_exchange(LIMITED, 9.0)] * limited


def test_attempts_that_wait_pass():
    upstream.CHECKS["retry"](create_attempts(1.0, 1.4, 1.9))


@pytest.mark.parametrize(
    ("exchanges", "text"),
    [
        (create_attempts(1.0, 1.05, 1.5), "expected pauses of 0.4 s"),
        (create_attempts(1.0), "expected 3 requests"),
        (create_attempts(1.0, 1.4, 1.8, 2.2), "expected 3 requests"),
        (create_attempts(1.0, 1.4, 1.9, large=1), "expected 2 requests"),
        (create_attempts(1.0, 1.4, 1.9, limited=2), "expected 1 requests"),
        (create_attempts(1.0, 1.4, 1.9, limited=0), "expected 1 requests"),
    ],
    ids=["too early", "once", "too often", "a large one once", "against the pushback", "no request"],
)
def test_attempts_that_do_not_wait_fail(exchanges, text):
    with pytest.raises(AssertionError, match=text):
        upstream.CHECKS["retry"](exchanges)


def test_refusal_that_is_not_retried_passes():
    upstream.CHECKS["error"]([create_exchange(upstream.REFUSED, 1.0)])


def test_refusal_that_is_retried_fails():
    with pytest.raises(AssertionError, match="expected 1 requests"):
        upstream.CHECKS["error"]([create_exchange(upstream.REFUSED, at) for at in (1.0, 3.5)])
