"""Tests of bridge/server/load.py: how full a process is, and how many calls start."""

import asyncio

import pytest

from bridge.core.errors import BridgeError
from bridge.server import orca
from bridge.server.call import RpcCall
from bridge.server.load import Load, LoadStream
from bridge.server.receiving import Receiving
from bridge.settings import Settings
from tests.unit.server.fake_rpc import FakeRpc


class World:
    """A process with so many calls, so much lag, and a clock."""

    def __init__(self, **settings) -> None:
        self.in_flight, self.lag_s, self.now = 0, 0.0, 1000.0
        made = Settings(calls_max=100, lag_max_ms=200, **{"load_reports": ["stream"]} | settings)
        self.load = Load(made, lambda: self.in_flight, lambda: self.lag_s, clock=lambda: self.now)

    def read(self, **options):
        return orca.LoadReport.FromString(self.load.encode(**options))


@pytest.mark.parametrize(
    ("in_flight", "lag_s", "utilization"),
    [(0, 0, 0), (50, 0, 0.5), (50, 0.02, 0.5), (50, 0.18, 0.9), (200, 0, 2), (0, 1, 5)],
)
def test_process_is_as_full_as_its_calls_or_its_time(in_flight, lag_s, utilization):
    world = World()
    world.in_flight, world.lag_s = in_flight, lag_s
    assert world.read().application_utilization == pytest.approx(utilization)


def test_call_that_ends_counts_as_in_flight():
    assert World().read(ending=1).application_utilization == pytest.approx(0.01)


@pytest.mark.parametrize("seconds", [1, 5, 60])
def test_steady_rate_is_known_from_the_start(seconds):
    world = World()
    for _ in range(seconds * 20):
        world.now += 0.05
        world.load.add_call()
    assert world.read().rps_fractional == pytest.approx(20, rel=0.06)


def test_rate_of_earlier_calls_fades():
    world = World()
    for _ in range(100):
        world.now += 0.1
        world.load.add_call()
    world.now += 60
    assert world.read().rps_fractional < 0.1


def test_process_that_just_started_has_no_rate():
    assert World().read().rps_fractional == 0


def test_trailers_have_a_report_if_a_setting_says_so():
    assert World().load.trailers() == []
    assert World(load_reports=["stream"]).load.trailers() == []
    ((name, data),) = World(load_reports=["trailers"]).load.trailers()
    assert name == "endpoint-load-metrics-bin"
    assert orca.LoadReport.FromString(data).application_utilization == pytest.approx(0.01)


@pytest.mark.parametrize("message", [b"", None, b"\x0a\x02\x10\x01"], ids=["no interval", "no request", "1 ns"])
async def test_stream_reports_at_once_and_not_all_the_time(message):
    pauses = []
    stopped = asyncio.Event()

    async def sleep(seconds):
        pauses.append(seconds)
        if len(pauses) == 3:
            stopped.set()
            await asyncio.get_running_loop().create_future()

    rpc = FakeRpc(message)
    call = RpcCall(rpc, (), None)
    task = asyncio.create_task(LoadStream(World().load, Receiving(Settings()), sleep=sleep).run(call))
    async with asyncio.timeout(10):
        await stopped.wait()
    task.cancel()
    assert len(rpc.sent) == 3
    assert set(pauses) == {1.0 if message else 10.0}


async def test_stream_whose_request_is_malformed_is_refused():
    call = RpcCall(FakeRpc(b"\xff"), (), None)
    with pytest.raises(BridgeError, match="expected an OrcaLoadReportRequest"):
        await LoadStream(World().load, Receiving(Settings())).run(call)
