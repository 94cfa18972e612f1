"""Tests of bridge/process/ports.py: the ports that workers share, and how many they are."""

import os
import socket

import pytest

from bridge.process.ports import count_workers, hold_ports
from bridge.settings import Settings, SettingsError, split_address


def test_auto_is_a_worker_for_each_core():
    assert count_workers(Settings(workers="auto")) == len(os.sched_getaffinity(0))
    assert count_workers(Settings(workers=3)) == 3


def test_port_that_is_held_can_be_bound_by_workers_and_by_nobody_else():
    with hold_ports(Settings(listen="127.0.0.1:0")) as settings:
        address = split_address(settings.listen)
        assert address[1] > 0
        with socket.create_server(address, reuse_port=True):
            pass
        with pytest.raises(SettingsError, match="listen: can't bind"), hold_ports(settings):
            pass
        with pytest.raises(OSError, match="in use"):
            socket.create_server(address)


def test_socket_cannot_be_shared():
    expected = "listen: expected HOST:PORT for several workers"
    with pytest.raises(SettingsError, match=expected), hold_ports(Settings(listen="unix:/tmp/socket")):
        pass


def test_free_ports_are_held_and_named():
    with hold_ports(Settings(listen="127.0.0.1:0", web_listen="127.0.0.1:0")) as settings:
        ports = [split_address(address)[1] for address in (settings.listen, settings.web_listen)]
        assert all(ports)
        for port in ports:
            with socket.socket() as worker:  # as a worker binds it
                worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                worker.bind(("127.0.0.1", port))


def test_web_port_may_be_off():
    with hold_ports(Settings(listen="127.0.0.1:0")) as settings:
        assert settings.web_listen == ""


@pytest.mark.parametrize("name", ["listen", "web_listen"])
def test_port_that_is_taken_is_refused(name):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with (
            pytest.raises(SettingsError, match=f"^{name}: can't bind '{address}': Address already in use"),
            hold_ports(Settings(**{"listen": "127.0.0.1:0", name: address})),
        ):
            pass
