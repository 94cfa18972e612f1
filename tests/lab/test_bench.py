"""The benchmarks' arithmetic, their report, and one tiny measurement from end to end."""

import asyncio
import dataclasses
import os
import sys
import time
from pathlib import Path

import pytest

if not sys.platform.startswith("linux"):
    pytest.skip("the benchmarks read /proc and pin processes to cores", allow_module_level=True)

from lab.bench import callers, h2load, targets
from lab.bench.calling import hold_streams, run_plan
from lab.bench.certificates import create_certificates
from lab.bench.contenders import AIOHTTP, BARE, BRIDGE, GO_BARE, GO_BRIDGE, GO_KEEP, golang
from lab.bench.figures import build_result, exponent, join_rounds, median, percentile, quantiles
from lab.bench.fleet import calls_for, fleet, in_turn
from lab.bench.loads import Load, verify
from lab.bench.page import PAGE
from lab.bench.parts import workers
from tests.kit.waiting import WAIT_S


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
    rounds = [build_result("m", *each) for each in (("c", {"ms": [3.0]}), ("d", {"ms": [9.0]}), ("c", {"ms": [1, 2]}))]
    assert join_rounds(rounds) == [build_result("m", "c", {"ms": [3.0, 1, 2]}), build_result("m", "d", {"ms": [9.0]})]
    assert [each.tried for each in join_rounds(rounds)] == [3, 1]
    assert median(join_rounds(rounds), "m", "c", "ms") == 2.0
    assert median(rounds, "m", "c", "KB") is None


def test_number_of_calls_is_a_multiple_of_the_turn() -> None:
    assert calls_for(2.0, 32, lambda calls: calls / 1000) == 1984
    assert calls_for(0.1, 32, lambda calls: calls * 1.0) == 32


@pytest.mark.parametrize(("cpu_each_s", "expected"), [((0.1, 2.0, 2.0), 0.5), ((0.1, 3.0, 1.0), 0.75), ((2.0,), 1.0)])
def test_share_of_the_busiest_worker_excludes_the_supervisor(cpu_each_s: tuple[float, ...], expected: float) -> None:
    assert workers.share(cpu_each_s) == pytest.approx(expected)


def test_target_is_met_up_to_its_bound_and_is_not_measured_without_results() -> None:
    at_most = targets.Target("cost", 2.5, "x", lambda kept: kept.get("cost"))
    at_least = dataclasses.replace(at_most, at_least=True)
    assert [at_most.row({"cost": value})[2:] for value in (2.5, 2.51)] == [["2.5 x", "met"], ["2.51 x", "**not met**"]]
    assert [at_least.row({"cost": value})[3] for value in (2.5, 2.49)] == ["met", "**not met**"]
    assert at_most.row({})[2:] == ["not measured", ""]


def test_every_target_has_kept_results_and_is_on_the_page() -> None:
    kept = {part: each.results for part, each in PAGE.read_all().items()}
    _, rows = targets.compare(kept)
    assert [row for row in rows if row[2] == "not measured"] == []
    for row in rows:
        assert f"| {' | '.join(row)} |" in PAGE.path.read_text(encoding="utf-8")


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
            until = time.monotonic() + WAIT_S
            streams = run_plan(contender, server, paced, "streams", at_once=2, chunks=70)
            while not streams["late"]:  # a busy machine may begin the second stream as the first one ends
                assert time.monotonic() < until
                streams = run_plan(contender, server, paced, "streams", at_once=2, chunks=70)
            assert streams["lost"] == 0
            assert len(streams["late"]) == len(streams["sent_late"])
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
            assert measured[BRIDGE][0].upstream_cpu_s > 0


@pytest.mark.skipif(h2load.version() is None, reason=h2load.MISSING)
def test_cpu_is_measured_with_tls_on_both_sides(tmp_path: Path) -> None:
    cores = {"server_cores": sorted(os.sched_getaffinity(0)), "load_cores": sorted(os.sched_getaffinity(0))}
    tls = create_certificates(tmp_path / "tls")
    with fleet((BRIDGE, BARE), tmp_path, upstream="canned", tls=tls, **cores) as running:
        for runs in in_turn(running, Load.fast(20), rounds=1, run_s=0.05).values():
            assert runs[0].cpu_s > 0


@pytest.mark.skipif(not golang.BUILT.exists(), reason="`make lab PART=bench` has not built the contenders in Go")
def test_contenders_in_go_answer_as_the_others_do(tmp_path: Path) -> None:
    with fleet((BRIDGE, GO_BARE, GO_BRIDGE, GO_KEEP), tmp_path, upstream="canned") as running:
        for load in (Load.unary(), Load.fast(20), Load.big(10_000)):
            assert len({verify(server, load, "grpc") for server in running.servers.values()}) <= 3  # keys, usage
