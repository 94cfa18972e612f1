"""Tests of bridge/emulator/faults.py: what the table of scenarios can't hold: time, memory, whole bodies."""

import email.utils
import json
import time

import pytest

from bridge.emulator import faults
from bridge.emulator.answers import Memory
from bridge.emulator.steps import RefusalError, Step
from tests.unit.emulator.table import create_call, run


def read_head(steps: list[Step]) -> tuple[int, dict[str, str]]:
    head = steps[0]
    return head.status, dict(head.headers)


@pytest.mark.parametrize("stream", [False, True])
def test_flaky_refuses_the_same_body_so_often_and_then_answers(stream):
    memory = Memory()
    heads = [
        read_head(
            run("flaky?times=2&status=429&retry_after_ms=40", create_call(stream=stream, received=body, memory=memory))
        )
        for body in (b"a", b"b", b"a", b"a", b"a")
    ]
    assert [status for status, _ in heads] == [429, 429, 429, 200, 429]
    assert heads[0][1] == {"content-type": "application/json", "retry-after-ms": "40"}


def test_flaky_without_a_wait_has_an_error_envelope_alone():
    head, write = run("flaky", create_call(stream=False))
    assert read_head([head]) == (503, {"content-type": "application/json"})
    error = {"message": "try again", "type": "overloaded_error", "code": None, "param": None}
    assert json.loads(write.data) == {"error": error}


def test_failures_that_are_counted_are_bounded():
    memory = Memory()
    for number in range(faults.FAILURES_MAX + 1):
        run("flaky", create_call(stream=False, received=b"%d" % number, memory=memory))
    assert len(memory.failures) == faults.FAILURES_MAX
    assert b"0" not in memory.failures


@pytest.mark.parametrize("stream", [False, True])
def test_refuse_answers_and_remembers_how_many_connections_to_reset(stream):
    call = create_call(stream=stream, memory=Memory())
    assert run("refuse?connects=2", call) == list(call.send())
    assert call.memory.resets_due == 2


def test_unknown_envelope_is_refused():
    with pytest.raises(RefusalError, match=r"envelope: expected full, bare, .*, empty, found `brown`"):
        run("error?envelope=brown", create_call(stream=False))


def test_retry_date_lies_so_far_ahead():
    now = int(time.time())
    _, headers = read_head(run("error?retry_after=7&retry_date_s=500", create_call(stream=False)))
    assert 500 <= email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp() - now < 600


def test_wrong_type_is_the_unary_answer_in_both_methods():
    call = create_call(stream=True)
    head, write = run("wrong_type", call)
    assert read_head([head]) == (200, {"content-type": "application/json"})
    assert json.loads(write.data) == call.build_reply()
