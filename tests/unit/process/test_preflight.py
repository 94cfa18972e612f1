"""Tests of bridge/process/preflight.py: all faults at once, and that nothing is left.

tests/e2e/test_preflight.py compares it with `serve`.
"""

import socket

import pytest
import structlog

from bridge.process.preflight import find_faults
from bridge.settings import load
from tests.kit.certificates import Certificates

GATEWAY = {"base_url": "http://127.0.0.1:9"}


def load_settings(**flags):
    return load(flags={"listen": "127.0.0.1:0", "admin_listen": "", "upstream": GATEWAY} | flags, environ={})


async def test_each_part_says_its_own_fault():
    settings = load_settings(
        listen="0.0.0.0:0",
        web_listen="0.0.0.0:0",
        tokens_file="/nowhere/tokens",
        upstream=GATEWAY | {"api_key": "sk-own", "ca_file": "/nowhere/ca.pem"},
    )
    before = structlog.get_config()
    findings = await find_faults(settings, bind=False)
    assert [fault.partition(":")[0] for fault in findings.faults] == [
        *("tokens_file", "upstream.ca_file", "listen", "web_listen"),
    ]
    assert structlog.get_config() == before


@pytest.mark.parametrize("name", ["admin_listen", "web_listen"])
async def test_taken_port_is_a_fault_only_if_it_is_to_be_bound(name):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = load_settings(**{name: f"127.0.0.1:{taken.getsockname()[1]}"})
        assert (await find_faults(settings, bind=False)).faults == []
        (fault,) = (await find_faults(settings, bind=True)).faults
    assert fault.startswith(f"{name}: ")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("bind", [False, True])
async def test_good_settings_have_no_faults(workers, bind):
    settings = load_settings(workers=workers, web_listen="127.0.0.1:0")
    assert (await find_faults(settings, bind=bind)).faults == []


async def test_socket_of_a_bridge_that_runs_is_left_alone(tmp_path):
    with socket.socket(socket.AF_UNIX) as running:
        running.bind(str(tmp_path / "socket"))
        running.listen()
        settings = load_settings(listen=f"unix:{tmp_path / 'socket'}")
        assert (await find_faults(settings, bind=False)).faults == []
        assert [path.name for path in tmp_path.iterdir()] == ["socket"]
        (fault,) = (await find_faults(settings, bind=True)).faults
        assert [path.name for path in tmp_path.iterdir()] == ["socket"]
    assert fault == f"listen: unix:{tmp_path / 'socket'} is in use by another process"


async def test_ends_of_certificates_are_found(tmp_path):
    findings = await find_faults(load_settings(tls=Certificates(tmp_path).settings), bind=False)
    assert list(findings.expiries) == ["tls.cert_file"]


async def test_limit_of_open_files_is_a_warning():
    settings = load_settings(calls_max=100_000, connections={"connections_max": 1_000_000})
    (warning,) = (await find_faults(settings, bind=False)).warnings
    assert warning.startswith("the limit of open files is below connections.connections_max + calls_max: raise it")
