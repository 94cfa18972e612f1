"""Tests of connections run on both event loops: the bridge runs on uvloop, and on asyncio's own where there is none."""

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

ASYNCIO = {"asyncio": asyncio.new_event_loop}
BOTH = {**ASYNCIO, "uvloop": uvloop.new_event_loop}
ON_BOTH = {"test_dial", "test_engine", "test_http1"}


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return BOTH if item.path.stem in ON_BOTH else ASYNCIO
