"""Compare the counts of a soak's three parties: callers, bridge and gateway."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lab.report import Result
from lab.torture.caller import KINDS, LOST, Outcome
from lab.torture.growth import sum_metric
from lab.torture.recording_gateway import Record

__all__ = ["FULL", "QUICK", "Times", "compare_counts", "judge_outcomes"]


@dataclass(frozen=True)
class Times:
    capacity_s: float
    load_s: float
    warm_s: float
    """From then on memory is judged: the status page's time line of ten minutes is full."""
    period_s: float
    age_s: float
    """Of connections: then they drain."""


_BY_CALLER = ("CANCELLED", "DEADLINE_EXCEEDED", LOST)
LOST_SHARE_MAX = 1e-4
FULL = Times(capacity_s=20, load_s=1800, warm_s=660, period_s=5, age_s=30)
QUICK = Times(capacity_s=8, load_s=90, warm_s=30, period_s=1, age_s=10)


# What the callers and the upstream saw


def judge_outcomes(outcomes: Mapping[str, Outcome], records: Sequence[Record], rate: float, capacity: float) -> Result:
    of = {each.request_id: each for each in records}
    wrong = Counter(what for each in outcomes.values() if (what := find_fault(each, of.get(each.request_id))))
    kinds = Counter("fault" if "fault" in each.kind else each.code for each in outcomes.values())
    whole = [each.took_ms for each in outcomes.values() if each.kind == "unary"]
    if kinds[LOST] > LOST_SHARE_MAX * len(outcomes) + 1:
        wrong["lost"] = kinds[LOST]
    return Result(
        "every call's outcome is known to its caller and matches what the upstream did",
        len(outcomes),
        ", ".join(f"{count} x {what}" for what, count in wrong.most_common(8)) or "all as required",
        ok=not wrong,
        figures={
            "capacity, calls/s": capacity,
            "load, calls/s": rate,
            "calls": len(outcomes),
            "of these, whole": kinds["OK"],
            "with a requested fault": kinds["fault"],
            "cancelled": kinds["CANCELLED"],
            "deadline exceeded": kinds["DEADLINE_EXCEEDED"],
            "never ended by the stock client itself": kinds[LOST],
            "unary p50, ms": statistics.median(whole),
            "unary p99, ms": statistics.quantiles(whole, n=100)[98],
        },
    )


_KIND = {kind.name: kind for kind in KINDS}


def find_fault(outcome: Outcome, record: Record | None) -> str:
    """Return what is wrong with a call; "" if both sides agree with each other and with its kind's end."""
    kind = _KIND[outcome.kind]
    if outcome.code == LOST:
        return ""
    what = f"{outcome.kind}: {outcome.code} {outcome.reason}".rstrip()
    if kind.is_ended_by_caller and outcome.code == kind.code:
        if record is not None and not (record.is_finished or record.is_closed):
            return f"{what}, but the upstream connection stayed open"
        return "" if outcome.is_consistent else f"{what}, but with parts of another call"
    if outcome.reason == "OVERLOADED":
        return "" if record is None else f"{what}, but it went upstream"
    if kind.is_ended_by_caller and outcome.code == "OK":  # it ended before its caller cancelled
        return (
            ""
            if outcome.is_consistent and record is not None and record.is_finished
            else f"{what}, but the upstream did not finish"
        )
    if (outcome.code, outcome.reason) != (kind.code, kind.reason):
        return f"{what} instead of {kind.code} {kind.reason}".rstrip()
    if not outcome.is_consistent:
        return f"{what}, but with parts of another call"
    if record is None:
        return f"{what}, but it never reached the upstream"
    if record.status != kind.http_status or kind.is_finished not in {None, record.is_finished}:
        return f"{what}, but the upstream wrote {record.status}, {'to the end' if record.is_finished else 'broken off'}"
    if outcome.code == "OK" and kind.stream and outcome.messages != record.events - 1:
        return f"{what}, but of {record.events} events"
    return ""


def compare_counts(
    outcomes: Mapping[str, Outcome], records: Sequence[Record], metrics: Mapping[tuple[str, str], float]
) -> list[Result]:
    """Compare the counts of the callers, the bridge and the upstream."""
    ids = Counter(each.request_id for each in records)
    twice = sum(count > 1 for count in ids.values())
    unknown = len(ids.keys() - outcomes.keys())
    of_bridge = sum_metric(metrics, "ollm_bridge_calls_total")
    sent = sum_metric(metrics, "http_client_request_duration_seconds_count")
    by_code: Counter[str] = Counter()
    for (name, labels), value in metrics.items():
        if name == "ollm_bridge_calls_total":
            by_code[dict(part.split("=") for part in labels.split(","))["code"].strip('"')] += int(value)
    caller_codes = Counter(each.code for each in outcomes.values())
    never_reached = sum(each.request_id not in ids for each in outcomes.values())
    differ = {
        code: (caller_codes[code], by_code[code])
        for code in caller_codes | by_code
        if caller_codes[code] != by_code[code]
    }
    # Of a call that its caller ends, the bridge may have seen the end, refused it because of its load, or seen nothing.
    unexplained = {code: pair for code, pair in differ.items() if code not in {"OK", *_BY_CALLER}}
    lost = caller_codes[LOST]
    unexplained = {code: pair for code, pair in unexplained.items() if not 0 < pair[1] - pair[0] <= lost}
    refused, of_bridge_refused = unexplained.get("RESOURCE_EXHAUSTED", (0, 0))
    if 0 < of_bridge_refused - refused <= sum(caller_codes[code] for code in _BY_CALLER):
        del unexplained["RESOURCE_EXHAUSTED"]
    return [
        Result(
            "upstream and callers agree on the number of calls, exactly",
            len(outcomes),
            f"{len(outcomes)} calls, {len(records)} reached the upstream, {never_reached} were cancelled before",
            ok=not twice
            and not unknown
            and len(outcomes) == len(records) + never_reached
            and 0 <= sent - len(records) <= never_reached,
            figures={
                "calls": len(outcomes),
                "requests that the upstream saw": len(records),
                "requests that the bridge counted": sent,
                "requests seen twice": twice,
                "requests of no call": unknown,
                "calls that never reached the upstream": never_reached,
            },
            note="a call may end before it reaches the upstream only if its caller cancels it, also while it is sent",
        ),
        Result(
            "the bridge's own count equals the callers', by code",
            int(of_bridge),
            ", ".join(f"{code} {pair[1]} for {pair[0]}" for code, pair in sorted(differ.items()))
            or "the same for each code",
            ok=not unexplained and 0 <= len(outcomes) - of_bridge <= never_reached,
            figures={f"{code}, of the bridge": float(count) for code, count in sorted(by_code.items())},
            note="a call may end by itself at the moment when its caller cancels; each side then reports its own end",
        ),
    ]
