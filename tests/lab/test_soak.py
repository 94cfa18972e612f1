"""The soak's arithmetic: which differences between the counts of callers, bridge and upstream it explains."""

import pytest

from lab.torture.caller import KINDS, Kind, Outcome
from lab.torture.recording_gateway import Record
from lab.torture.soak.judgment import compare_counts, find_fault

CALLS, REQUESTS = "ollm_bridge_calls_total", "http_client_request_duration_seconds_count"


def create_outcome(number, code="OK", reason=""):
    return Outcome(str(number), "unary", code, reason, 1, is_consistent=True, took_ms=1.0)


def create_record(number):
    return Record(str(number), 200, 0, is_finished=True, is_closed=False)


def compare(caller_codes, bridge_codes, *, never_reached=0):
    outcomes = {str(number): create_outcome(number, code) for number, code in enumerate(caller_codes)}
    records = [create_record(number) for number in range(never_reached, len(caller_codes))]
    metrics = {(CALLS, f'code="{code}",method="m"'): count for code, count in bridge_codes.items()}
    number, codes = compare_counts(outcomes, records, metrics | {(REQUESTS, ""): float(len(records))})
    return number.ok, codes.ok


@pytest.mark.parametrize(
    ("caller_codes", "bridge_codes", "never_reached"),
    [
        (["OK", "OK"], {"OK": 2}, 0),
        (["OK", "CANCELLED"], {"OK": 2}, 0),
        (["OK", "CANCELLED"], {"OK": 1}, 1),
        (["OK", "CANCELLED"], {"OK": 1, "RESOURCE_EXHAUSTED": 1}, 1),
    ],
    ids=["the same", "it ended as its caller cancelled", "cancelled at once", "refused as its caller cancelled"],
)
def test_difference_that_a_caller_makes_is_explained(caller_codes, bridge_codes, never_reached):
    assert compare(caller_codes, bridge_codes, never_reached=never_reached) == (True, True)


@pytest.mark.parametrize(
    ("caller_codes", "bridge_codes"),
    [
        (["OK", "UNAVAILABLE"], {"OK": 2}),
        (["OK", "OK"], {"OK": 1, "RESOURCE_EXHAUSTED": 1}),
        (["RESOURCE_EXHAUSTED", "CANCELLED"], {"OK": 2}),
        (["OK", "OK"], {"OK": 1}),
        (["OK", "OK"], {"OK": 3}),
    ],
    ids=["an answer lost", "a refusal that no caller saw", "a refusal of nobody", "a call lost", "a call of nobody"],
)
def test_difference_that_no_caller_makes_fails(caller_codes, bridge_codes):
    assert compare(caller_codes, bridge_codes) == (True, False)


def test_shares_of_the_kinds_make_a_whole():
    assert sum(kind.share for kind in KINDS) == pytest.approx(1)


def get_kind(name) -> Kind:
    return next(kind for kind in KINDS if kind.name == name)


@pytest.mark.parametrize(
    ("name", "outcome", "record", "is_fault"),
    [
        ("stream, read slowly", ("OK", 102), (102 + 1, True, False), False),
        ("stream, read slowly", ("OK", 102), (90, True, False), True),
        ("stream, read slowly", ("UNAVAILABLE", 50), (103, True, False), True),
        ("connection reset", ("CANCELLED", 0), (5, False, True), False),
        ("connection reset", ("CANCELLED", 0), (5, False, False), True),
        ("connection reset", ("CANCELLED", 0), None, False),
    ],
    ids=["whole", "other events", "lost", "closed upstream", "left open upstream", "never sent"],
)
def test_end_of_a_call_is_judged_by_its_kind(name, outcome, record, is_fault):
    code, messages = outcome
    made = Outcome("1", get_kind(name).name, code, "", messages, is_consistent=True, took_ms=1.0)
    seen = record and Record("1", 200, record[0], is_finished=record[1], is_closed=record[2])
    assert bool(find_fault(made, seen)) == is_fault
