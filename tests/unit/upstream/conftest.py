"""Tests of connections run on both event loops: the bridge runs on uvloop, and on asyncio's own where there is none.

A test that takes `engine_kind` runs on both HTTP engines.
"""

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

from tests.unit.upstream.engines import ENGINES

ASYNCIO = {"asyncio": asyncio.new_event_loop}
BOTH = {**ASYNCIO, "uvloop": uvloop.new_event_loop}
ON_BOTH = {
    *("test_dial", "test_engine", "test_http1"),
    *("test_connecting", "test_httpx_engine", "test_kept_connections", "test_leaving"),
}


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return BOTH if item.path.stem in ON_BOTH else ASYNCIO


@pytest.fixture(params=ENGINES)
def engine_kind(request: pytest.FixtureRequest) -> str:
    return request.param
