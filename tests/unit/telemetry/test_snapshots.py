"""Workers' snapshots add up in the supervisor, whenever a worker dies and whatever the disk has room for."""

import asyncio
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bridge.telemetry.caller_counts import CallerCounts
from bridge.telemetry.failures import FAILURES_MAX, Failures
from bridge.telemetry.metrics import Metrics
from bridge.telemetry.snapshots import SnapshotReader, publish_snapshots
from tests.kit.processes import build_source_environment, start_program_async
from tests.kit.waiting import eventually
from tests.unit.telemetry.records import RECORD, make_record

ROOT = Path(__file__).parents[3]
LONG_S = 30
FAILED = make_record(code="INTERNAL", reason="BRIDGE_FAULT")


class Worker:
    """What a worker counts with, in this process."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self.metrics = Metrics("1.2.3", {"connections": lambda: 3})
        self.failures = Failures()
        self.callers = CallerCounts()

    def run_call(self, record=RECORD) -> None:
        self.metrics.start(record.method)
        self.metrics.end(record)
        self.failures.end(record)
        self.callers.end(record)

    def publish(self, **options):
        return publish_snapshots(self.folder, self.name, self.metrics, self.failures, self.callers, **options)


async def test_page_of_the_supervisor_is_the_sum_of_its_workers(tmp_path):
    snapshots = SnapshotReader(tmp_path)
    metrics = Metrics("1.2.3", workers=snapshots.read_metrics)
    failures = Failures(workers=snapshots.read_failures)
    callers = CallerCounts(workers=snapshots.read_callers)
    one, two = Worker(tmp_path, "1"), Worker(tmp_path, "2")
    for worker in (one, two):
        worker.run_call()
        worker.run_call(FAILED._replace(request_id=worker.name))
        worker.metrics.start("CreateChatCompletion")
    async with one.publish(), two.publish():
        totals = metrics.totals()
        assert (totals.calls, totals.failed, totals.in_flight, totals.connections) == (4, 2, 2, 6)
        assert (totals.tokens_in, totals.reasons, totals.duration[float("inf")]) == (80, {"BRIDGE_FAULT": 2}, 4)
        assert b'\nollm_bridge_info{version="1.2.3"} 1.0\n' in metrics.page()
        assert {failure.request_id for failure in failures.last()} == {"1", "2"}
        assert callers.read()[""].calls == 4
    for worker in (one, two):
        snapshots.retire(worker.name)
    assert callers.read()[""][:4] == (4, 0, 0, 2)


async def test_values_that_change_are_written_again_and_at_the_end(tmp_path):
    snapshots, worker = SnapshotReader(tmp_path), Worker(tmp_path, "1")

    def count() -> float:
        return sum(snapshots.read_metrics().numbers["calls"].values())

    async with worker.publish(period_s=0.005):
        worker.run_call()
        await eventually(lambda: count() == 1, LONG_S)
        worker.run_call()
        await eventually(lambda: count() == 2, LONG_S)
    async with worker.publish(period_s=1e6):
        worker.run_call()
        await asyncio.sleep(0)
    assert count() == 3


async def test_snapshot_is_not_written_again_if_nothing_has_changed(tmp_path):
    worker = Worker(tmp_path, "1")
    async with worker.publish(period_s=1e6):
        (path,) = tmp_path.iterdir()
        before = path.stat()
    assert path.stat().st_ino == before.st_ino
    assert path.stat().st_mtime_ns == before.st_mtime_ns


async def test_worker_that_ended_keeps_its_counters_and_loses_its_gauges_and_its_file(tmp_path):
    snapshots = SnapshotReader(tmp_path)
    metrics = Metrics("1.2.3", workers=snapshots.read_metrics)
    for number in range(5):
        worker = Worker(tmp_path, "same")
        worker.metrics.start("CreateChatCompletion")
        worker.run_call(FAILED._replace(request_id=str(number)))
        async with worker.publish():
            pass
        for _ in range(2):
            snapshots.retire("same")
        assert list(tmp_path.iterdir()) == []
        totals = metrics.totals()
        assert (totals.calls, totals.failed) == (number + 1, number + 1)
        assert (totals.in_flight, totals.connections) == (0, 0)
        assert totals.duration[float("inf")] == number + 1
    assert [each.request_id for each in snapshots.read_failures()] == ["4", "3", "2", "1", "0"]


async def test_failures_of_workers_are_bounded_together(tmp_path):
    snapshots = SnapshotReader(tmp_path)
    for name in ("1", "2", "3"):
        worker = Worker(tmp_path, name)
        for _ in range(FAILURES_MAX):
            worker.run_call(FAILED._replace(request_id=name))
        async with worker.publish():
            pass
    snapshots.retire("1")
    assert {failure.request_id for failure in snapshots.read_failures()} == {"3"}
    assert len(snapshots.read_failures()) == FAILURES_MAX


async def test_files_that_are_no_snapshots_are_passed_over(tmp_path):
    worker = Worker(tmp_path, "1")
    worker.run_call(FAILED)
    async with worker.publish():
        whole = next(tmp_path.iterdir()).read_bytes()
    for number, data in enumerate((b"", whole[:-9], b"[1]", b"{}", b"null", b'{"metrics":{},"failures":[]}')):
        (tmp_path / f"other-{number}.snapshot.json").write_bytes(data)
    (tmp_path / "1.snapshot.new").write_bytes(whole)
    (tmp_path / "folder.snapshot.json").mkdir()
    snapshots = SnapshotReader(tmp_path)
    assert sum(snapshots.read_metrics().numbers["calls"].values()) == 1
    assert len(snapshots.read_failures()) == 1
    for name in ("folder", "other-0", "none"):
        snapshots.retire(name)


async def test_first_snapshot_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        async with Worker(tmp_path / "nowhere", "1").publish():
            pytest.fail("it was written")


async def test_folder_that_is_gone_costs_snapshots_alone_and_is_logged_once(tmp_path):
    folder = tmp_path / "shared"
    folder.mkdir()
    worker = Worker(folder, "1")
    errors = worker.metrics.read
    with capture_logs() as lines:
        async with worker.publish(period_s=0.005):
            next(folder.iterdir()).unlink()
            folder.rmdir()
            worker.run_call()
            await eventually(lambda: errors().numbers["snapshot_errors"][()] > 2, LONG_S)
            folder.mkdir()
            await eventually(lambda: list(folder.glob("*.json")), LONG_S)
    assert [line["event"] for line in lines] == ["metrics could not be written for the supervisor"]
    assert lines[0]["error"] == "No such file or directory"


PROGRAM = """
import asyncio, contextlib, sys
from pathlib import Path
from bridge.telemetry.caller_counts import CallerCounts
from bridge.telemetry.failures import Failures
from bridge.telemetry.metrics import Metrics
from bridge.telemetry.snapshots import SnapshotReader, publish_snapshots
from tests.unit.telemetry.records import RECORD

folder, name = Path(sys.argv[1]), "".join(sys.argv[2:]) or "1"
metrics, failures = Metrics("1.2.3"), Failures()

def publish(period_s):
    return publish_snapshots(folder, name, metrics, failures, CallerCounts(), period_s=period_s)

def run_call():
    metrics.start(RECORD.method)
    metrics.end(RECORD)
"""
COUNT_FOR_EVER = """
async def run():
    async with publish(0.001):
        while True:
            run_call()
            await asyncio.sleep(0)

asyncio.run(run())
"""


async def test_worker_that_is_killed_at_any_instant_leaves_a_whole_snapshot(tmp_path):
    snapshots = SnapshotReader(tmp_path)

    def count() -> float:
        return sum(snapshots.read_metrics().numbers["calls"].values())

    for name in ("1", "2", "3"):
        before = count()
        program = (sys.executable, "-c", PROGRAM + COUNT_FOR_EVER, str(tmp_path), name)
        async with start_program_async(*program, environment=build_source_environment()):
            await eventually(lambda before=before: count() > before + 10, LONG_S)
        last = count()
        assert last > before + 10
        snapshots.retire(name)
        assert count() == last
        assert list(tmp_path.iterdir()) == []


FILL_THE_DISK = """
def count():
    return sum(SnapshotReader(folder).read_metrics().numbers["calls"].values())

async def run():
    run_call()
    async with asyncio.timeout(50), publish(0.005):
        with (folder / "others").open("wb", 0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(512))
        for _ in range(100):
            run_call()
        while metrics.read().numbers["snapshot_errors"][()] < 2:
            await asyncio.sleep(0.005)
        assert count() == 1
        (folder / "others").unlink()
        while count() < 101:
            await asyncio.sleep(0.005)

asyncio.run(run())
"""


def test_disk_that_has_filled_up_costs_snapshots_alone_until_it_has_room_again(tmp_path, run_on_small_disk):
    run_on_small_disk(PROGRAM + FILL_THE_DISK, tmp_path)
