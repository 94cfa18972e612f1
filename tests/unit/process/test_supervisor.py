"""Tests of bridge/process/supervisor.py: when it does not start. tests/e2e/test_workers.py has the workers at work."""

import multiprocessing
import socket

import pytest

from bridge.process.supervisor import Supervisor
from bridge.settings import LogSettings, SettingsError, load
from bridge.telemetry.logs import open_log


async def fail_to_start(folder, **flags) -> str:
    """Return why one worker can't be started."""
    flags = {"listen": "127.0.0.1:0", "upstream": {"base_url": "http://127.0.0.1:9"}} | flags
    with open_log(LogSettings(format="json")) as log, pytest.raises(SettingsError) as caught:
        await Supervisor(load(flags=flags, environ={}), log, 1, folder).run(print)
    assert multiprocessing.active_children() == []
    return str(caught.value)


async def test_several_workers_need_a_port(tmp_path, capfd):
    address = f"unix:{tmp_path}/socket"
    assert (
        await fail_to_start(tmp_path, listen=address)
        == f"listen: expected HOST:PORT for several workers, found '{address}'"
    )
    capfd.readouterr()


async def test_port_of_another_program_is_not_shared(tmp_path, capfd):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert (
            await fail_to_start(tmp_path, listen=address) == f"listen: can't bind '{address}': Address already in use"
        )
    capfd.readouterr()


async def test_refusal_of_a_worker_is_that_of_all(tmp_path, capfd):
    assert (await fail_to_start(tmp_path, tokens_file="/no/tokens")).startswith("tokens_file: ")
    capfd.readouterr()
