"""Tests of bridge/process/compose.py: what a process is made of, and that all of it is closed again."""

import asyncio

import grpc
import pytest

from bridge.process.compose import compose
from bridge.settings import LogSettings, Settings, SettingsError
from bridge.telemetry.logs import open_log
from tests.conftest import Bridge, chat


def make_settings(emulator, **settings) -> Settings:
    return Settings(**{"listen": "127.0.0.1:0", "drain_grace_s": 0, "upstream": {"base_url": emulator.url}} | settings)


async def test_parts_serve_and_count_while_the_server_is_entered(emulator, capfd):
    states: list[bool] = []
    with open_log(LogSettings(format="json")) as log:
        async with compose(make_settings(emulator), log, on_health=states.append) as parts, parts.server as server:
            async with grpc.aio.insecure_channel(server.address) as channel:
                assert (await Bridge(server.address, channel).ask(chat())).failure is None
            assert parts.metrics.totals().calls == 1
            assert parts.metrics.totals().connections == 1
    assert states == [True, False]
    assert '"event":"call"' in capfd.readouterr().err


async def test_worker_leaves_what_it_counts_in_the_shared_folder(emulator, tmp_path, capfd):
    with open_log(LogSettings(format="json")) as log:
        async with compose(make_settings(emulator), log, shared=tmp_path):
            assert [path.suffix for path in tmp_path.iterdir()] == [".json"]
    capfd.readouterr()


async def test_error_inside_a_worker_is_not_taken_for_one_of_its_folder(emulator, tmp_path, capfd):
    with open_log(LogSettings(format="json")) as log, pytest.raises(OSError, match="of the block"):
        async with compose(make_settings(emulator), log, shared=tmp_path):
            raise OSError("of the block")
    capfd.readouterr()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"listen": "192.0.2.1:0", "insecure": True}, "listen: "),
        ({"tokens_file": "/nowhere/tokens", "upstream": {"api_key": "sk-own"}}, "tokens_file: "),
        ({"upstream": {"ca_file": "/nowhere/ca.pem"}}, "upstream.ca_file: "),
    ],
)
async def test_settings_that_cannot_be_used_are_refused_and_leave_nothing(emulator, settings, named, capfd):
    before = len(asyncio.all_tasks())
    with open_log(LogSettings(format="json")) as log, pytest.raises(SettingsError, match=named):
        async with compose(make_settings(emulator, **settings), log):
            pass
    assert len(asyncio.all_tasks()) == before
    capfd.readouterr()
