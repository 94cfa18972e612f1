"""Tests of bridge/server/health.py: what health says, and that it follows the upstream."""

import asyncio

from grpc_health.v1 import health_pb2

from bridge.core.reasons import SERVICE_NAME
from bridge.server.health import Health
from bridge.settings import HealthSettings

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
        is_up = True
        assert await changes.get()
    assert health.is_serving


async def test_health_without_a_period_never_tries_the_upstream():
    health = Health(HealthSettings())

    async def reach() -> None:
        raise AssertionError

    async with health.watch(reach):
        await asyncio.sleep(0)
