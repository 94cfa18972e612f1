"""The sockets of the call port: TCP, or a Unix socket. They listen before anything is served."""

import socket
from pathlib import Path

from bridge.server.listeners import address_error, remove_socket
from bridge.settings import UNIX, split_address
from bridge.tcp import BACKLOG, listen_tcp

__all__ = ["Listeners", "bind_sockets"]


class Listeners:
    """Sockets that are bound. `address` is what the settings have, with the port that was found."""

    def __init__(self, address: str, sockets: list[socket.socket]) -> None:
        self.address = address
        self.sockets = sockets

    def close(self) -> None:
        """Close the sockets, and remove a Unix socket's file."""
        for each in self.sockets:
            each.close()
        remove_socket(self.address)


def bind_sockets(listen: str, *, reuse_port: bool) -> Listeners:
    """Bind the address in the settings: each address of a name. Raises SettingsError."""
    try:
        if listen.startswith(UNIX):
            return Listeners(listen, [_bind_unix(Path(listen.removeprefix(UNIX)))])
        host, port = split_address(listen)
        sockets = listen_tcp(host, port, reuse_port=reuse_port)
    except OSError as error:
        raise address_error("listen", listen, str(error.strerror or error)) from None
    return Listeners(f"{listen.rpartition(':')[0]}:{sockets[0].getsockname()[1]}", sockets)


def _bind_unix(path: Path) -> socket.socket:
    """Bind a Unix socket; `check_listen` has found that nobody serves one that is there."""
    if path.is_socket():
        path.unlink()
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener
