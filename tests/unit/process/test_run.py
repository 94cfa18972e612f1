"""Tests of bridge/process/run.py: one process, from its start to a signal."""

import asyncio
import gc
import os
import re
import signal

import pytest

from bridge.process.run import run
from bridge.settings import SettingsError, load
from tests.kit.collector import freeze_heap


@pytest.fixture(autouse=True)
def _restore_collections():
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    freeze_heap()  # of this test's


def load_settings(emulator, **flags):
    flags = {"listen": "127.0.0.1:0", "admin_listen": "127.0.0.1:0", "upstream": {"base_url": emulator.url}} | flags
    return load(flags=flags, environ={})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_process_says_where_it_listens_and_ends_with_0_at_a_signal(emulator, number, capfd):
    addresses = []

    def stop(address, about):
        addresses.append(address)
        assert re.search(rf", upstream {emulator.url}, page http://127\.0\.0\.1:[1-9]\d*/$", about)
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), number)

    assert await run(load_settings(emulator), stop) == 0
    assert [address.startswith("127.0.0.1:") for address in addresses] == [True]
    capfd.readouterr()


@pytest.mark.parametrize("workers", [1, 2])
async def test_address_that_cannot_be_bound_is_an_error_of_the_settings(emulator, workers, capfd):
    loaded = load_settings(emulator, listen="192.0.2.1:0", insecure=True, workers=workers)
    with pytest.raises(SettingsError, match=r"^listen: "):
        await run(loaded, print)
    capfd.readouterr()
