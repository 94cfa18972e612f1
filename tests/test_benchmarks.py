"""The benchmarks' arithmetic, their report, and one tiny measurement from end to end."""

import asyncio
import dataclasses
import os
import sys
from pathlib import Path

import pytest

if not sys.platform.startswith("linux"):
    pytest.skip("the benchmarks read /proc and pin processes to cores", allow_module_level=True)

from tests import pages
from tests.benchmarks import callers, h2load, report, targets
from tests.benchmarks.__main__ import PARTS
from tests.benchmarks.calling import hold_streams, run_plan
from tests.benchmarks.contenders import AIOHTTP, BARE, BRIDGE
from tests.benchmarks.figures import Figure, exponent, join_rounds, median, percentile, quantiles
from tests.benchmarks.fleet import calls_for, fleet, in_turn
from tests.benchmarks.loads import Load
from tests.benchmarks.parts import cpu, workers


@pytest.mark.parametrize(
    ("count", "fraction", "expected"),
    [(1, 0.5, 1), (2, 0.5, 1), (3, 0.5, 2), (100, 0.99, 99), (100, 0.999, 100), (1000, 0.999, 999), (5, 0.0, 1)],
)
def test_percentile_is_the_value_of_the_nearest_rank(count: int, fraction: float, expected: int) -> None:
    assert percentile(range(1, count + 1), fraction) == expected


def test_quantiles_order_the_values_and_scale_them() -> None:
    assert quantiles([0.003, 0.001, 0.002], scale=1e3) == {"p50": 2, "p99": 3, "p99.9": 3, "most": 3}


@pytest.mark.parametrize(
    ("costs", "expected"),
    [
        ({1: 900.0, 10: 10.0, 100: 100.0}, 1.0),
        ({1000: 4e6, 100: 4e4}, 2.0),
        ({10: 7.0, 100: 7.0}, 0.0),
    ],
    ids=["linear", "quadratic", "constant"],
)
def test_exponent_is_that_between_the_two_largest_sizes(costs: dict[int, float], expected: float) -> None:
    assert exponent(costs) == pytest.approx(expected)


def test_figures_of_several_rounds_are_joined_in_order() -> None:
    rounds = [Figure("m", "c", "ms", (3.0,)), Figure("m", "d", "ms", (9.0,)), Figure("m", "c", "ms", (1.0, 2.0))]
    assert join_rounds(rounds) == [Figure("m", "c", "ms", (3.0, 1.0, 2.0)), Figure("m", "d", "ms", (9.0,))]
    assert median(join_rounds(rounds), "m", "c", "ms") == 2.0
    assert median(rounds, "m", "c", "KB") is None


def test_number_of_calls_is_a_multiple_of_the_turn() -> None:
    assert calls_for(2.0, 32, lambda calls: calls / 1000) == 1984
    assert calls_for(0.1, 32, lambda calls: calls * 1.0) == 32


@pytest.mark.parametrize(("cpu_each_s", "expected"), [((0.1, 2.0, 2.0), 0.5), ((0.1, 3.0, 1.0), 0.75), ((2.0,), 1.0)])
def test_share_of_the_busiest_worker_excludes_the_supervisor(cpu_each_s: tuple[float, ...], expected: float) -> None:
    assert workers.share(cpu_each_s) == pytest.approx(expected)


def test_table_has_a_row_a_contender_and_the_times_of_the_bridge() -> None:
    figures = [
        Figure("a call", BRIDGE.title, "CPU µs", (400.0, 410.0, 390.0)),
        Figure("a call", BRIDGE.title, "a second", (2500.0,)),
        Figure("a call", BARE.title, "CPU µs", (200.0,)),
    ]
    assert report.table(figures, beside=True) == (
        ["", "", "CPU µs", "x (a)", "a second"],
        [
            ["a call", BRIDGE.title, "400 (390-410)", "1.00", "2,500"],
            ["", BARE.title, "200", "0.50", ""],
        ],
    )


def test_kept_results_are_read_back_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    result = cpu.Result([Figure("a call", BRIDGE.title, "CPU µs", (1.5, 2.25))], ["A note."])
    report.keep("cpu", result, {"commit": "abc"}, 12.4)
    figures, document = report.read_kept("cpu")
    assert figures == result.figures
    assert document == {"commit": "abc", "rounds": 2, "took_s": 12, "notes": ["A note."]}


def test_part_of_a_page_is_replaced_and_the_others_stay(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- x: written by y -->\nold\n<!-- /x -->\nb\n<!-- z: written by y -->\n<!-- /z -->\n")
    pages.replace_part(page, "x", ["new", "rows"], written_by="y")
    pages.replace_part(page, "missing", ["none"], written_by="y")
    expected = "a\n<!-- x: written by y -->\nnew\nrows\n<!-- /x -->\nb\n<!-- z: written by y -->\n<!-- /z -->\n"
    assert page.read_text() == expected


def test_target_is_met_up_to_its_bound_and_is_not_measured_without_results() -> None:
    at_most = targets.Target("cost", 2.5, "x", lambda kept: kept.get("cost"))
    at_least = dataclasses.replace(at_most, at_least=True)
    assert [at_most.row({"cost": value})[2:] for value in (2.5, 2.51)] == [["2.5 x", "met"], ["2.51 x", "**not met**"]]
    assert [at_least.row({"cost": value})[3] for value in (2.5, 2.49)] == ["met", "**not met**"]
    assert at_most.row({})[2:] == ["not measured", ""]


def test_every_target_has_kept_results() -> None:
    results = {part: report.read_kept(part) for part in PARTS}
    assert None not in results.values()
    _, rows = targets.table({part: figures for part, (figures, _) in results.items()})
    assert [row for row in rows if row[2] == "not measured"] == []
    for row in rows:
        assert f"| {' | '.join(row)} |" in report.PAGE.read_text(encoding="utf-8")


class OneAtATime:
    """A server that takes 15 ms a call, one after the other."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()

    async def call(self) -> None:
        async with self.lock:
            await asyncio.sleep(0.015)


async def test_wait_for_a_busy_server_counts_from_the_due_time_of_the_call() -> None:
    result = await callers.rate(OneAtATime(), calls=20, rate=100, streamed=False)
    assert len(result["took"]) == len(result["begun_late"]) == 20
    assert max(result["took"]) > 20 * 0.015 - 19 / 100 - 0.001


def test_callers_measure_calls_and_chunks_and_hold_streams(tmp_path: Path) -> None:
    with fleet((BRIDGE, AIOHTTP), tmp_path, upstream="emulator") as running:  # one of each kind of caller
        for contender, server in running.servers.items():
            unary = run_plan(contender, server, Load.unary(), "rate", calls=10, rate=50, streamed=False)
            assert len(unary["took"]) == 10
            paced = Load.paced(70, 20, at_once=2)
            streams = run_plan(contender, server, paced, "streams", at_once=2, chunks=70)
            assert streams["lost"] == 0
            assert len(streams["late"]) == len(streams["sent_late"]) > 20
            with hold_streams(contender, server, Load.paced(1, 3_600_000), 2):
                assert server.resident_bytes() > 0


@pytest.mark.skipif(h2load.version() is None, reason=h2load.MISSING)
def test_cpu_is_measured_of_the_bridge_beside_a_bare_server(tmp_path: Path) -> None:
    cores = {"server_cores": sorted(os.sched_getaffinity(0)), "load_cores": sorted(os.sched_getaffinity(0))}
    with fleet((BRIDGE, BARE), tmp_path, upstream="canned", **cores) as running:
        for load in (Load.unary(), Load.fast(20), Load.unary(messages=1, text="x" * 1_000_000, at_once=1)):
            measured = in_turn(running, load, rounds=1, run_s=0.05)
            for runs in measured.values():
                assert runs[0].cpu_s > 0
                assert runs[0].units % load.units == 0
            if load == Load.unary():
                assert measured[BRIDGE][0].cpu_us > measured[BARE][0].cpu_us
