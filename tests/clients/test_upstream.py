"""A client that does other than it says is found out by what the gateway saw."""

import pytest

from tests.clients import upstream

FLAKY = "scenario::flaky?times=2&status=429&retry_after_ms=400"
LIMITED = "scenario::rate_limited?retry_after=61"
STALL = "scenario::stall?after=3"


def exchange(model, received_at, closed_at=None, *, finished=True):
    return {"json": {"model": model}, "received_at": received_at, "closed_at": closed_at, "finished": finished}


def broken_off(closed_at):
    return [exchange(STALL, 1.0, closed_at, finished=False), exchange("later", 2.0)]


def test_call_that_is_closed_before_the_last_request_is_cancelled():
    upstream.SAW["cancel"](broken_off(1.5))


@pytest.mark.parametrize(
    ("exchanges", "text"),
    [
        ([], "expected one request"),
        (broken_off(None), "is still open"),
        (broken_off(2.5), "0.500 s after the client's last request"),
        ([exchange(STALL, 1.0, 1.5), exchange("later", 2.0)], "was taken whole"),
        ([*broken_off(1.5), *broken_off(1.5)], "found 2"),
    ],
    ids=["never asked", "left open", "closed at the client's end", "taken whole", "repeated"],
)
def test_call_that_is_not_cancelled_is_found_out(exchanges, text):
    with pytest.raises(AssertionError, match=text):
        upstream.SAW["cancel"](exchanges)


def attempts(*times_s, limited=1):
    return [exchange(FLAKY, at) for at in times_s] + [exchange(LIMITED, 9.0)] * limited


def test_attempts_that_wait_as_asked_obey():
    upstream.SAW["retry"](attempts(1.0, 1.4, 1.9))


@pytest.mark.parametrize(
    ("exchanges", "text"),
    [
        (attempts(1.0, 1.05, 1.5), "expected pauses of 0.4 s"),
        (attempts(1.0), "expected 3 requests"),
        (attempts(1.0, 1.4, 1.8, 2.2), "expected 3 requests"),
        (attempts(1.0, 1.4, 1.9, limited=2), "expected 1 requests"),
        (attempts(1.0, 1.4, 1.9, limited=0), "expected 1 requests"),
    ],
    ids=["too early", "once", "too often", "against the pushback", "never asked"],
)
def test_attempts_that_do_not_obey_are_found_out(exchanges, text):
    with pytest.raises(AssertionError, match=text):
        upstream.SAW["retry"](exchanges)


def test_refusal_that_is_not_repeated_is_left_alone():
    upstream.SAW["error"]([exchange(upstream.REFUSED, 1.0)])


def test_refusal_that_is_repeated_is_found_out():
    with pytest.raises(AssertionError, match="expected 1 requests"):
        upstream.SAW["error"]([exchange(upstream.REFUSED, at) for at in (1.0, 3.5)])
