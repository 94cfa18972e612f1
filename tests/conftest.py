"""A bridge between a stock grpc.aio client and the emulated gateway: real sockets, one process.

Most tests use `bridge` (or `start_bridge(…)`, for other settings than the defaults), `emulator`, a request by `chat`
or `scenario`, and `Bridge.ask`, which makes a call and returns all that came of it.
"""

import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from bridge.emulator import Emulator
from tests.kit.bridges import start_bridge_here
from tests.kit.client import Bridge
from tests.kit.collector import freeze_heap
from tests.kit.processes import hold_closed_port

EXAMPLES = int(os.environ.get("PROPERTY_EXAMPLES", "0"))
"""How many random examples a property test tries that has no number of its own; 0: a hundred, the same each time."""

settings.register_profile(
    "tests",
    max_examples=EXAMPLES or 100,
    deadline=None,  # no test fails by the clock
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=not EXAMPLES,
    print_blob=True,
)
settings.load_profile("tests")

StartBridge = Callable[..., Awaitable[Bridge]]


def pytest_collection_finish():
    freeze_heap()


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    async with Emulator() as emulator:
        yield emulator


@pytest.fixture
def closed_address() -> Iterator[str]:
    """Return an address that refuses connections."""
    with hold_closed_port() as port:
        yield f"127.0.0.1:{port}"


@pytest.fixture
def upstream_engine() -> str:
    """Return which HTTP engine a bridge uses; tests that concern the upstream override it to run on both."""
    return "native"


@pytest.fixture
async def start_bridge(emulator: Emulator, upstream_engine: str) -> AsyncIterator[StartBridge]:
    """Start a bridge in front of the emulator: `await start_bridge(calls_max=1, upstream={"idle_timeout_s": 1})`."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(*, channel: dict[str, Any] | None = None, **settings: Any) -> Bridge:
            upstream = {"base_url": emulator.url, "engine": upstream_engine} | settings.pop("upstream", {})
            return await stack.enter_async_context(start_bridge_here(channel=channel, upstream=upstream, **settings))

        yield start


@pytest.fixture
async def bridge(start_bridge: StartBridge) -> Bridge:
    return await start_bridge()
