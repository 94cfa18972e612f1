"""Tests of bridge/process/compose.py: what a process is made of, and that all of it is closed again."""

import asyncio
import gc

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from bridge.core.x509 import list_validities
from bridge.process.compose import compose
from bridge.reload import reload_now
from bridge.settings import LogSettings, Settings, SettingsError
from bridge.telemetry.logs import open_log
from tests.kit.certificates import Certificates
from tests.kit.client import Bridge, chat


@pytest.fixture(autouse=True)
def _forget_files_of_others():
    gc.collect()


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


async def test_files_that_both_ports_reload_count_once(emulator, tmp_path, capfd):
    certificates = Certificates(tmp_path)
    with open_log(LogSettings(format="json")) as log:
        settings = make_settings(emulator, tls=certificates.settings, web_listen="127.0.0.1:0")
        async with compose(settings, log) as parts, parts.server:
            certificates.cert_file.write_bytes(b"garbage")
            reload_now()
            page = parts.metrics.page().decode()
    assert capfd.readouterr().err.count("a changed file can't be used") == 1
    assert '\nollm_bridge_file_reload_failures_total{setting="tls.cert_file"} 1.0\n' in page
    assert page.count("\nollm_bridge_certificate_expiry_timestamp_seconds{") == 1


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


async def test_metrics_have_what_the_parts_know(emulator, tmp_path, capfd):
    certificates = Certificates(tmp_path)
    with open_log(LogSettings(format="json")) as log:
        settings = make_settings(emulator, tls=certificates.settings, calls_max=7)
        async with compose(settings, log) as parts:
            assert 'ollm_bridge_processes{state="starting"} 1.0' in parts.metrics.page().decode()
            async with parts.server:
                page = parts.metrics.page().decode()
    capfd.readouterr()
    for sample in (
        'ollm_bridge_processes{state="serving"} 1.0',
        'ollm_bridge_processes{state="draining"} 0.0',
        "ollm_bridge_calls_max 7.0",
        "ollm_bridge_calls_queued 0.0",
        "ollm_bridge_caller_connections 0.0",
    ):
        assert f"\n{sample}\n" in page
    # Counted for the process, so other tests' files are in the numbers.
    for name in ("ollm_bridge_file_reloads_total", "ollm_bridge_file_reload_failures_total"):
        assert f'\n{name}{{setting="tls.cert_file"}} ' in page
    ((_, expiry),) = list_validities(certificates.cert_file.read_bytes())
    samples = [each for family in text_string_to_metric_families(page) for each in family.samples]
    found = {each.value for each in samples if each.name == "ollm_bridge_certificate_expiry_timestamp_seconds"}
    assert found == {expiry}


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
