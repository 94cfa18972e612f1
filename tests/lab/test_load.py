"""The hour of ordinary load: what ghz reports, and that each difference between the three counts is found."""

import dataclasses
import json
import math

import pytest

from lab.torture.growth import Sample, judge_growth
from lab.torture.holdings import Holdings
from lab.torture.load import LOADS, Counts, compare_counts, judge_load, parse_counts
from lab.torture.recording_gateway import Record

REPORT = {
    "count": 138,
    "rps": 24.3,
    "slowest": 1_026_876_825,
    "errorDistribution": {"rpc error: code = Unavailable desc = connection refused": 38},
    "statusCodeDistribution": {"OK": 100, "ResourceExhausted": 38},
    "latencyDistribution": [
        {"percentage": 50, "latency": 455_077_503},
        {"percentage": 99, "latency": 1_025_518_208},
    ],
    "details": [{"status": "OK"}],
}
GOOD = Counts(2, 1.0, {"OK": 2}, {}, 1.0, 2.0, 3.0)
RECORDS = (Record("", 200, 0, is_finished=True, is_closed=False), Record("", 200, 23, is_finished=True, is_closed=True))
CALLS = ("ollm_bridge_calls_total", 'code="OK",method="CreateChatCompletion",reason=""')
LOST = ("ollm_bridge_calls_total", 'code="ABORTED",method="CreateChatCompletion",reason="UPSTREAM_DISCONNECTED"')
REFUSED = ("ollm_bridge_calls_total", 'code="RESOURCE_EXHAUSTED",method="StreamChatCompletion",reason="OVERLOADED"')
CHUNKS = ("ollm_bridge_chunks_total", "")
ENDED = ("ollm_bridge_caller_connections_ended_total", 'reason="rapid_reset"')
METRICS = {CALLS: 2.0, LOST: 0.0, CHUNKS: 22.0}


def test_report_of_ghz_is_read():
    counts = parse_counts(json.dumps(REPORT))
    assert (counts.calls, counts.codes) == (138, {"OK": 100, "RESOURCE_EXHAUSTED": 38})
    assert counts.p50_ms == pytest.approx(455.08, abs=0.01)
    assert counts.p99_ms == pytest.approx(1025.52, abs=0.01)
    assert counts.slowest_ms == pytest.approx(1026.88, abs=0.01)


def test_report_without_a_call_that_ended_well_is_read():
    counts = parse_counts(json.dumps(REPORT | {"latencyDistribution": None, "errorDistribution": None}))
    assert counts.errors == {}
    assert math.isnan(counts.p50_ms)


@pytest.mark.parametrize("codes", [{"OK": 2000}, {"OK": 1998, "RESOURCE_EXHAUSTED": 2}], ids=["all", "all but a few"])
def test_load_passes_if_each_call_is_ok(codes):
    assert judge_load(LOADS[0], dataclasses.replace(GOOD, calls=2000, codes=codes)).ok


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"calls": 0, "codes": {}}, ""),
        ({"codes": {"OK": 1, "UNAVAILABLE": 1}, "errors": {"reset": 1}}, "1 OK, 1 UNAVAILABLE; 1 x reset"),
        ({"codes": {"OK": 1, "RESOURCE_EXHAUSTED": 1}}, "1 OK, 1 RESOURCE_EXHAUSTED"),
        ({"codes": {"OK": 1}}, "1 OK"),
    ],
    ids=["no call", "a failure", "many refusals", "a call without an end"],
)
def test_load_with_a_call_that_is_not_ok_fails(change, text):
    result = judge_load(LOADS[0], dataclasses.replace(GOOD, **change))
    assert (result.ok, result.outcome) == (False, text)


def test_counts_that_agree_pass():
    assert compare_counts([GOOD], RECORDS, METRICS).ok
    refused = dataclasses.replace(GOOD, calls=1, codes={"RESOURCE_EXHAUSTED": 1})
    assert compare_counts([GOOD, refused], RECORDS, METRICS | {REFUSED: 1.0}).ok


@pytest.mark.parametrize(
    ("records", "metrics"),
    [
        (RECORDS[:1], METRICS),
        (RECORDS * 2, METRICS),
        ((RECORDS[0]._replace(is_finished=False), RECORDS[1]), METRICS),
        (RECORDS, METRICS | {CALLS: 1.0}),
        (RECORDS, METRICS | {CALLS: 1.0, LOST: 1.0}),
        (RECORDS, METRICS | {REFUSED: 1.0}),
        (RECORDS, METRICS | {CHUNKS: 21.0}),
        (RECORDS, METRICS | {ENDED: 1.0}),
    ],
    ids=[
        "a request lost",
        "sent twice",
        "broken off",
        "a call lost",
        "a call failed",
        "refused nobody",
        "a chunk lost",
        "ended for abuse",
    ],
)
def test_counts_that_differ_fail(records, metrics):
    assert not compare_counts([GOOD], records, metrics).ok


def create_samples(seconds, mib_per_hour):
    return [
        Sample(at_s, 60 + mib_per_hour * at_s / 3600, 20, Holdings(5, 1000, 10.0), 1.0)
        for at_s in range(0, seconds, 10)
    ]


@pytest.mark.parametrize(
    ("seconds", "mib_per_hour", "ok"), [(3600, 9, True), (3600, 11, False), (120, 100, True), (120, 500, False)]
)
def test_growth_is_judged_by_the_hour_if_the_run_is_long(seconds, mib_per_hour, ok):
    samples = create_samples(seconds, mib_per_hour)
    idle = dataclasses.replace(samples[0], in_flight=0.0)
    memory, held, in_flight = judge_growth(samples, idle, idle, warm_s=20)
    assert (memory.ok, held.ok, in_flight.ok) == (ok, True, True)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"descriptors": 40}, (False, True)),
        ({"holdings": Holdings(6, 1000, 10.0)}, (False, True)),
        ({"in_flight": 1.0}, (True, False)),
    ],
    ids=["descriptors", "a task", "a call in flight"],
)
def test_what_is_held_afterwards_fails(change, expected):
    samples = create_samples(600, 0)
    idle = dataclasses.replace(samples[0], in_flight=0.0)
    _, held, in_flight = judge_growth(samples, idle, dataclasses.replace(idle, **change), warm_s=20)
    assert (held.ok, in_flight.ok) == expected
