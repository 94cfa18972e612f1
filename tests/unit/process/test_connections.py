"""Tests of bridge/process/connections.py: the kernel's count of a port's connections."""

import contextlib
import socket
import sys

import pytest

from bridge.process.connections import CallerConnections
from tests.kit.processes import has_ipv6

NEEDS_IPV6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the tables are Linux's")


def connect(stack: contextlib.ExitStack, listener: socket.socket) -> socket.socket:
    """Return the accepted side of a new connection."""
    client = stack.enter_context(socket.socket(listener.family))
    client.connect(listener.getsockname())
    return stack.enter_context(listener.accept()[0])


@pytest.mark.parametrize("family", [socket.AF_INET, pytest.param(socket.AF_INET6, marks=NEEDS_IPV6), socket.AF_UNIX])
def test_connections_to_an_address_are_counted_and_no_others(family, tmp_path):
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(family))
        if family == socket.AF_UNIX:
            listener.bind(str(tmp_path / "socket"))
            address = f"unix:{tmp_path / 'socket'}"
        else:
            listener.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
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


def test_line_that_the_kernel_repeats_is_one_connection(tmp_path):
    """It gives a busy table in pieces: one reading in ten had a line twice while other programs came and went."""
    line = "0100007F:{:04X} 0100007F:{:04X} 01 00000000:00000000 00:00000000 00000000 0 0 2712 1 0000000000000000"
    rows = [line.format(*ports) for ports in ((50051, 40000), (50051, 40001), (50051, 40000), (50052, 40000))]
    (tmp_path / "tcp").write_text("\n".join(["head", *(f"  {at}: {row}" for at, row in enumerate(rows)), ""]))
    assert CallerConnections(lambda: ["127.0.0.1:50051"], tables=tmp_path)() == 2
