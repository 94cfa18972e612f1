"""How many workers there are, and the ports that they share."""

import contextlib
import os
import socket
from collections.abc import Iterator

from bridge.settings import Settings, SettingsError, split_address

__all__ = ["count_workers", "hold_ports"]


def count_workers(settings: Settings) -> int:
    """Return how many processes are to take calls."""
    return len(os.sched_getaffinity(0)) if settings.workers == "auto" else settings.workers


@contextlib.contextmanager
def hold_ports(settings: Settings) -> Iterator[Settings]:
    """Hold the ports, so that each worker binds the same, and yield the settings with them. Raises SettingsError."""
    with contextlib.ExitStack() as stack:
        names = ("listen", "web_listen") if settings.web_listen else ("listen",)
        bound = {name: stack.enter_context(_hold_port(name, getattr(settings, name))) for name in names}
        yield settings.model_copy(update=bound)


@contextlib.contextmanager
def _hold_port(name: str, listen: str) -> Iterator[str]:
    try:
        host, port = split_address(listen)
    except ValueError:
        raise SettingsError(f"{name}: expected HOST:PORT for several workers, found {listen!r}") from None
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    address = (host.strip("[]"), port)
    with socket.socket(family) as held:
        try:
            with socket.socket(family) as probe:  # a port that the workers share must not be shared with strangers
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind(address)
        except OSError as error:
            raise SettingsError(f"{name}: can't bind {listen!r}: {error.strerror}") from None
        yield f"{host}:{held.getsockname()[1]}"
