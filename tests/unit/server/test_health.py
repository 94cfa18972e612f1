"""Tests of bridge/server/health.py: what health says, and that it follows the upstream."""

import asyncio
import time

import pytest
from grpc_health.v1 import health_pb2
from structlog.testing import capture_logs

from bridge.core.errors import BridgeError, Code
from bridge.core.reasons import SERVICE_NAME
from bridge.server.health import STATES, Health
from bridge.settings import HealthSettings
from ollmbridge.v1 import error_details_pb2 as details_pb2

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
NAMES = ("", SERVICE_NAME)


async def test_health_is_serving_after_the_start_and_not_after_the_drain():
    states: list[bool] = []
    health = Health(HealthSettings(), states.append)
    assert not health.is_serving
    health.start()
    assert [health.find_status(name) for name in NAMES] == [SERVING] * 2
    health.drain()
    assert [health.find_status(name) for name in NAMES] == [NOT_SERVING] * 2
    assert states == [True, False]
    health.start()  # as a try of the upstream that ends late might
    assert [health.find_status(name) for name in NAMES] == [NOT_SERVING] * 2
    assert states == [True, False]


@pytest.mark.parametrize("name", NAMES)
async def test_watcher_is_told_the_status_at_once_and_then_of_changes_alone(name):
    health = Health(HealthSettings())
    health.start()
    assert await health.wait_for_status(name) == SERVING
    change = asyncio.create_task(health.wait_for_status(name, SERVING))
    await asyncio.sleep(0)
    health.start()
    await asyncio.sleep(0)
    assert not change.done()
    health.drain()
    assert await change == NOT_SERVING
    assert await health.wait_for_status(name) == NOT_SERVING


async def test_watcher_of_an_unknown_service_is_told_so_once_and_goes_on():
    health = Health(HealthSettings())
    assert health.find_status("nobody") is None
    assert await health.wait_for_status("nobody") == SERVICE_UNKNOWN
    change = asyncio.create_task(health.wait_for_status("nobody", SERVICE_UNKNOWN))
    for act in (health.start, health.drain):
        await asyncio.sleep(0)
        act()
    await asyncio.sleep(0)
    assert not change.done()
    change.cancel()


async def test_state_says_why_calls_are_not_taken_and_since_when(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    health = Health(HealthSettings())
    assert (health.state, health.since) == ("starting", 1000)
    now = 1001.0
    health.start()
    assert (health.state, health.since) == ("serving", 1001)
    now = 1002.0
    health.drain()
    assert (health.state, health.since) == ("draining", 1002)
    assert {health.state, "serving", "starting", "upstream_unreachable"} == set(STATES)


async def test_health_follows_the_upstream():
    changes: asyncio.Queue[bool] = asyncio.Queue()
    health = Health(HealthSettings(upstream_period_s=0.001, upstream_failures=3), changes.put_nowait)
    tries: list[bool] = []
    is_up = False

    async def reach() -> None:
        tries.append(is_up)
        if not is_up:
            raise OSError("refused")

    health.start()
    async with health.watch(reach):
        assert await changes.get()
        assert not await changes.get()
        assert tries == [False] * 3
        assert health.state == "upstream_unreachable"
        is_up = True
        assert await changes.get()
    assert health.is_serving


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (
            BridgeError(Code.UNAVAILABLE, details_pb2.ERROR_REASON_UPSTREAM_UNREACHABLE, "can't connect: refused"),
            {"reason": "UPSTREAM_UNREACHABLE", "detail": "can't connect: refused"},
        ),
        (ValueError("no word of it"), {"fault": "ValueError"}),
    ],
)
async def test_log_says_why_the_upstream_is_not_reached(error, why):
    changes: asyncio.Queue[bool] = asyncio.Queue()
    health = Health(HealthSettings(upstream_period_s=0.001, upstream_failures=1), changes.put_nowait)

    async def reach() -> None:
        raise error

    health.start()
    with capture_logs() as lines:
        async with health.watch(reach):
            assert await changes.get()
            assert not await changes.get()
    event = {"event": "not serving: the upstream can't be reached", "log_level": "warning", "failures": 1}
    assert lines == [event | why]


async def test_health_without_a_period_never_tries_the_upstream():
    health = Health(HealthSettings())

    async def reach() -> None:
        raise AssertionError

    async with health.watch(reach):
        await asyncio.sleep(0)
