"""Tests of bridge/server/heartbeat.py: who gets one, how often, and what never comes between."""

import asyncio
import contextlib

import pytest

from bridge.core.errors import BridgeError
from bridge.server.heartbeat import Heartbeat, read_period_s
from bridge.server.rpc import ClientDisconnectedError
from tests.kit.waiting import WAIT_S, eventually

PERIODS = {
    "none": ((), 7.0),
    "another key": ((("ollmbridge-heartbeat", "3"),), 7.0),
    "a number": ((("ollmbridge-heartbeat-s", "15"),), 15.0),
    "a fraction": ((("ollmbridge-heartbeat-s", "1.5"),), 1.5),
    "never": ((("ollmbridge-heartbeat-s", "0"),), 0.0),
    "nothing": ((("ollmbridge-heartbeat-s", ""),), 7.0),
    "two": ((("ollmbridge-heartbeat-s", "15"), ("ollmbridge-heartbeat-s", "9")), 15.0),
}


@pytest.mark.parametrize(("metadata", "period_s"), PERIODS.values(), ids=PERIODS)
def test_first_value_of_the_metadata_counts_before_the_setting(metadata, period_s):
    assert read_period_s(metadata, 7.0) == period_s


@pytest.mark.parametrize("text", ["soon", "-1", "0.5", "3601", "nan", "inf", "1e9", "15s", "sk-secret"])
def test_period_that_is_no_number_within_the_bounds_is_refused_without_its_text(text):
    with pytest.raises(BridgeError) as caught:
        read_period_s((("ollmbridge-heartbeat-s", text),), 7.0)
    assert (caught.value.code.name, caught.value.reason_name) == ("INVALID_ARGUMENT", "INVALID_METADATA")
    assert "expected 0, or 1 to 3600 seconds, in ollmbridge-heartbeat-s" in caught.value.message
    assert "secret" not in caught.value.message


class Beats:
    """Counts beats; each waits for `go`."""

    def __init__(self) -> None:
        self.started = self.ended = 0
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self) -> None:
        self.started += 1
        await self.go.wait()
        self.ended += 1


async def test_silence_is_filled_with_beats():
    beats = Beats()
    async with Heartbeat(0.01, beats):
        await eventually(lambda: beats.ended >= 3)
    ended = beats.ended
    await asyncio.sleep(0.03)
    assert beats.ended == ended


async def test_what_is_sent_starts_the_time_again():
    beats = Beats()
    async with Heartbeat(3600, beats) as heartbeat:
        for _ in range(3):
            async with heartbeat.hold():
                await asyncio.sleep(0)
    assert beats.started == 0


async def test_no_beat_comes_while_something_is_sent():
    beats = Beats()
    async with Heartbeat(0.01, beats) as heartbeat:
        async with heartbeat.hold():
            before = beats.started
            await asyncio.sleep(0.05)
            assert beats.started == before
        await eventually(lambda: beats.ended > before)


async def test_beat_that_waits_for_its_reader_ends_before_what_comes_next():
    beats = Beats()
    beats.go.clear()
    async with Heartbeat(0.01, beats) as heartbeat:
        await eventually(lambda: beats.started == 1)
        asyncio.get_running_loop().call_later(0.02, beats.go.set)
        async with heartbeat.hold():
            assert beats.ended == 1
    assert beats.ended >= 1


async def test_beat_that_waits_for_its_reader_ends_before_the_stream_does():
    beats = Beats()
    beats.go.clear()
    async with Heartbeat(0.01, beats):
        await eventually(lambda: beats.started == 1)
        asyncio.get_running_loop().call_later(0.02, beats.go.set)
    assert beats.ended == beats.started


async def test_failure_of_the_stream_ends_a_beat_at_once():
    beats = Beats()
    beats.go.clear()
    with contextlib.suppress(KeyError):
        async with asyncio.timeout(WAIT_S), Heartbeat(0.01, beats):
            await eventually(lambda: beats.started == 1)
            raise KeyError
    assert beats.ended == 0


async def test_end_from_outside_ends_a_beat_that_the_stream_waits_for():
    """The caller resets the call while its last beat waits for room."""
    beats = Beats()
    beats.go.clear()

    async def stream():
        async with Heartbeat(0.01, beats):
            await eventually(lambda: beats.started == 1)
            ending.set()

    before = asyncio.all_tasks()
    ending = asyncio.Event()
    call = asyncio.create_task(stream())
    await ending.wait()
    await asyncio.sleep(0)  # it waits for the beat
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert asyncio.all_tasks() == before
    assert beats.ended == 0


async def test_caller_that_disconnects_is_no_failure_of_a_beat():
    async def beat():
        beaten.set()
        raise ClientDisconnectedError

    beaten = asyncio.Event()
    async with Heartbeat(0.001, beat):
        await beaten.wait()


async def test_fault_of_a_beat_is_the_streams():
    async def beat():
        beaten.set()
        raise ValueError("why")

    beaten = asyncio.Event()
    with pytest.raises(ValueError, match="why"):
        async with Heartbeat(0.001, beat):
            await beaten.wait()
