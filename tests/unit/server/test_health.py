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


async def check(health: Health, service: str = "") -> int:
    answer = await health.servicer.Check(health_pb2.HealthCheckRequest(service=service), None)
    return answer.status


async def test_health_is_serving_after_the_start_and_not_after_the_drain():
    states: list[bool] = []
    health = Health(HealthSettings(), states.append)
    assert not health.is_serving
    await health.start()
    assert [await check(health, name) for name in ("", SERVICE_NAME)] == [SERVING] * 2
    await health.drain()
    assert [await check(health, name) for name in ("", SERVICE_NAME)] == [NOT_SERVING] * 2
    assert states == [True, False]


async def test_state_says_why_calls_are_not_taken_and_since_when(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    health = Health(HealthSettings())
    assert (health.state, health.since) == ("starting", 1000)
    now = 1001.0
    await health.start()
    assert (health.state, health.since) == ("serving", 1001)
    now = 1002.0
    await health.drain()
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

    await health.start()
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

    await health.start()
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
