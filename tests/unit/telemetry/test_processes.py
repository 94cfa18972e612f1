"""Tests of bridge/telemetry/processes.py: the figures of several processes are summed, and CPU time never goes back."""

import os
import sys
import time

import pytest
from prometheus_client import ProcessCollector

from bridge.telemetry.processes import Processes
from tests.kit.proc import HAS_PROC
from tests.kit.processes import run_program

pytestmark = pytest.mark.skipif(not HAS_PROC, reason="the figures are read from /proc")

BURN = "sum(range(6_000_000))"


def read(collector: Processes) -> dict[str, float]:
    return {sample.name: sample.value for family in collector.collect() for sample in family.samples}


def test_one_process_has_the_metrics_of_prometheus_client():
    theirs = {s.name for family in ProcessCollector(registry=None).collect() for s in family.samples}
    assert read(Processes()).keys() == theirs


def test_memory_and_files_of_all_are_summed_and_the_start_is_ours():
    one, both = read(Processes()), read(Processes(lambda: [os.getpid()]))
    assert both["process_open_fds"] == pytest.approx(2 * one["process_open_fds"], abs=6)
    assert both["process_max_fds"] == 2 * one["process_max_fds"]
    assert both["process_virtual_memory_bytes"] > 1.5 * one["process_virtual_memory_bytes"]
    assert both["process_start_time_seconds"] == one["process_start_time_seconds"]


def test_process_that_is_gone_counts_as_nothing():
    assert read(Processes(lambda: [2**22 + 1])).keys() == read(Processes()).keys()


def test_cpu_time_of_children_that_have_ended_stays():
    before = read(Processes())["process_cpu_seconds_total"]
    burnt = time.process_time()
    assert run_program(sys.executable, "-c", BURN).code == 0
    own = time.process_time() - burnt
    assert read(Processes())["process_cpu_seconds_total"] - before > own + 0.02


def test_cpu_time_never_goes_back():
    pids = [os.getpid()]
    collector = Processes(lambda: pids)
    first = read(collector)["process_cpu_seconds_total"]
    pids.clear()
    assert read(collector)["process_cpu_seconds_total"] >= first


def test_without_proc_there_is_nothing():
    assert read(Processes(lambda: [1], read=lambda _pid: ())) == {}
