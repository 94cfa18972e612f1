"""The TCP sockets of every port but grpc.aio's.

They listen before anything is served, so a port that is taken is found out at once.

`[::]` takes IPv4 too, on each port, as it does where grpc.aio binds; any other IPv6 address takes IPv6 alone.
"""

import asyncio
import contextlib
import errno
import socket
from typing import Final

__all__ = ["BACKLOG", "close_server", "listen_tcp"]

BACKLOG: Final = 1024
_PORT_TRIES: Final = 10
"""Of free ports, for one that is free at all addresses of a name."""
_TURNS_TO_MAKE: Final = 3
"""Of the loop, from a connection's accept to its protocol's `connection_made`."""


def listen_tcp(host: str, port: int, *, reuse_port: bool = False) -> list[socket.socket]:
    """Listen at every address of a host, and return the sockets. All get the same port. Raises OSError."""
    found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    for tries_left in reversed(range(_PORT_TRIES)):
        with contextlib.ExitStack() as stack:
            sockets: list[socket.socket] = []
            try:
                for family, address in addresses:
                    wanted = sockets[0].getsockname()[1] if sockets else port
                    listener = _listen(family, (address[0], wanted, *address[2:]), reuse_port=reuse_port)
                    sockets.append(stack.enter_context(listener))
            except OSError as error:
                if port or error.errno != errno.EADDRINUSE or not tries_left:
                    raise
            else:
                stack.pop_all()
                return sockets
    raise AssertionError("unreachable")


async def close_server(server: asyncio.Server) -> None:
    """Stop accepting, and close the listeners once the protocol of each accepted connection has it.

    `Server.close` by itself leaves connections that are accepted and not yet made: they would come to a server that has
    ended its connections, or be lost with their sockets open. Those in a TLS handshake still come later.
    """
    loop = asyncio.get_running_loop()
    for listener in server.sockets:
        loop.remove_reader(listener)
    for _ in range(_TURNS_TO_MAKE):
        await asyncio.sleep(0)
    server.close()


def _listen(family: int, address: tuple[str | int, ...], *, reuse_port: bool) -> socket.socket:
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address[0] != "::"))
        listener.bind(address)
        listener.listen(BACKLOG)  # on Linux two sockets that do not listen may have one port
    except BaseException:
        listener.close()
        raise
    return listener
