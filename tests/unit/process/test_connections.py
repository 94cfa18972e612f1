"""Tests of bridge/process/connections.py: the kernel's count of a port's connections."""

import contextlib
import socket
import sys

import pytest

from bridge.process.connections import CallerConnections

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the tables are Linux's")


def connect(stack: contextlib.ExitStack, listener: socket.socket) -> socket.socket:
    """Return the accepted side of a new connection."""
    client = stack.enter_context(socket.socket(listener.family))
    client.connect(listener.getsockname())
    return stack.enter_context(listener.accept()[0])


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX])
def test_connections_to_an_address_are_counted_and_no_others(family, tmp_path):
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(family))
        if family == socket.AF_UNIX:
            listener.bind(str(tmp_path / "socket"))
            address = f"unix:{tmp_path / 'socket'}"
        else:
            try:
                listener.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
            except OSError:
                pytest.skip("no IPv6 here")
            address = f"localhost:{listener.getsockname()[1]}"
        listener.listen()
        count = CallerConnections(lambda: [address, ""], keep_s=0)
        assert count() == 0
        accepted = [connect(stack, listener) for _ in range(3)]
        assert count() == 3
        accepted.pop().close()
        assert count() == 2


def test_count_is_kept_for_a_moment():
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        count = CallerConnections(lambda: [f"127.0.0.1:{listener.getsockname()[1]}"], keep_s=3600)
        assert count() == 0
        connect(stack, listener)
        assert count() == 0
