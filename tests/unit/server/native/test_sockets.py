"""Tests of bridge/server/native/sockets.py: what is bound, at once, and what is refused with which words."""

import pytest

from bridge.server.native.sockets import bind_sockets
from bridge.settings import SettingsError


def bind(listen: str, *, reuse_port: bool = False):
    return bind_sockets(listen, reuse_port=reuse_port)


def test_free_port_is_in_the_address():
    listeners = bind("127.0.0.1:0")
    host, _, port = listeners.address.rpartition(":")
    assert (host, int(port)) == listeners.sockets[0].getsockname()
    listeners.close()


def test_port_in_use_is_refused_with_the_reason():
    taken = bind("127.0.0.1:0")
    with pytest.raises(SettingsError, match=f"listen: .* found '{taken.address}': Address already in use"):
        bind(taken.address)
    taken.close()
    bind(taken.address).close()


def test_workers_share_a_port():
    first = bind("127.0.0.1:0", reuse_port=True)
    second = bind(first.address, reuse_port=True)
    with pytest.raises(SettingsError, match="Address already in use"):
        bind(first.address)
    first.close()
    second.close()


@pytest.mark.parametrize("listen", ["192.0.2.1:0", "nowhere.invalid:0", "unix:/nowhere/at/all.sock"])
def test_address_that_is_not_here_is_refused(listen):
    with pytest.raises(SettingsError, match="listen: expected an address that can be bound"):
        bind(listen)


def test_unix_socket_takes_the_place_of_one_that_was_left_and_is_removed(tmp_path):
    path = tmp_path / "bridge.sock"
    for _ in range(2):
        bind(f"unix:{path}").sockets[0].close()  # it stays behind, as after a kill
    listeners = bind(f"unix:{path}")
    assert listeners.address == f"unix:{path}"
    listeners.close()
    assert not path.exists()


def test_file_that_is_no_socket_is_left_alone(tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(SettingsError, match="Address already in use"):
        bind(f"unix:{path}")
    assert path.read_text() == "mine"
