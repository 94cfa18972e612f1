"""Tests of bridge/tcp.py: which addresses take connections, at which port, what is refused, and how a server ends."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import pytest

from bridge.tcp import close_server, listen_tcp
from tests.kit.processes import has_ipv6
from tests.kit.waiting import WAIT_S

NEEDS_IPV6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")


@contextlib.contextmanager
def listening(host: str, port: int = 0, *, reuse_port: bool = False) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(each) for each in listen_tcp(host, port, reuse_port=reuse_port)]


def is_reachable(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=WAIT_S).close()
    except ConnectionRefusedError:
        return False
    return True


def test_every_address_of_a_host_is_listened_at_and_all_at_one_port():
    families = {family for family, *_ in socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)}
    with listening("localhost") as sockets:
        assert {each.family for each in sockets} == families
        assert len({each.getsockname()[1] for each in sockets}) == 1


@NEEDS_IPV6
@pytest.mark.parametrize(
    ("host", "reachable"),
    [
        pytest.param("[::]", {"127.0.0.1", "::1"}, id="all addresses"),
        pytest.param("[0:0:0:0:0:0:0:0]", {"127.0.0.1", "::1"}, id="all addresses, in full"),
        pytest.param("[::1]", {"::1"}, id="IPv6"),
        pytest.param("0.0.0.0", {"127.0.0.1"}, id="all addresses of IPv4"),
    ],
)
def test_wildcard_of_ipv6_takes_ipv4_too_and_no_other_address_does(host, reachable):
    with listening(host) as sockets:
        port = sockets[0].getsockname()[1]
        assert {each for each in ("127.0.0.1", "::1") if is_reachable(each, port)} == reachable


@NEEDS_IPV6
def test_wildcard_of_ipv6_needs_the_port_of_ipv4_too():
    with listening("127.0.0.1") as taken, pytest.raises(OSError, match="Address already in use"):
        listen_tcp("[::]", taken[0].getsockname()[1])


def test_taken_port_is_an_os_error():
    with listening("127.0.0.1") as taken, pytest.raises(OSError, match="Address already in use"):
        listen_tcp("127.0.0.1", taken[0].getsockname()[1])


def test_port_may_be_shared_with_others_of_its_kind():
    with listening("127.0.0.1", reuse_port=True) as first:
        address = first[0].getsockname()
        with listening(*address, reuse_port=True) as second:
            assert second[0].getsockname() == address


@pytest.mark.parametrize("turns", range(6))
async def test_accepted_connection_is_made_before_its_server_has_ended(turns):
    """In each turn of the loop from the accept on; before it, the kernel resets the connection."""
    made = []

    class Connection(asyncio.Protocol):
        def connection_made(self, transport):
            made.append(transport)

    server = await asyncio.get_running_loop().create_server(Connection, sock=listen_tcp("127.0.0.1", 0)[0])
    with socket.create_connection(server.sockets[0].getsockname(), timeout=WAIT_S) as client:
        for _ in range(turns):
            await asyncio.sleep(0)
        await close_server(server)
        count = len(made)
        assert (turns > 1) <= count <= 1
        for transport in made:
            transport.abort()
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.to_thread(client.recv, 1) == b""
        assert len(made) == count
