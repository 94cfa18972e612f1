"""Addresses, as they stand in settings and flags: HOST:PORT, which hosts are loopback, unix:PATH, and origins."""

import ipaddress
import re
from collections.abc import Iterable
from typing import Final

__all__ = [
    "UNIX",
    "check_listen_address",
    "check_networks",
    "check_optional_address",
    "check_origin",
    "is_loopback",
    "split_address",
]

UNIX: Final = "unix:"
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+")


def split_address(address: str) -> tuple[str, int]:
    """Split `HOST:PORT`, or `[HOST]:PORT` for IPv6. Raises ValueError."""
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isascii() and port.isdigit() and int(port) < 65536):
        raise ValueError("expected HOST:PORT, with a port of 0 to 65535 (IPv6: [HOST]:PORT)")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether a host is of this machine alone, by its name or number."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def check_listen_address(address: str) -> str:
    """Return an address to listen at, HOST:PORT or unix:PATH, as it is. Raises ValueError."""
    if not (address.startswith(UNIX) and len(address) > len(UNIX)):
        split_address(address)
    return address


def check_optional_address(address: str) -> str:
    """Return HOST:PORT as it is, or the empty text, which means nowhere. Raises ValueError."""
    if address:
        split_address(address)
    return address


def check_networks(networks: Iterable[str]) -> tuple[str, ...]:
    """Return addresses and networks, such as 10.0.0.1 and ::1/128, as networks. Raises ValueError."""
    try:
        return tuple(str(ipaddress.ip_network(each)) for each in networks)
    except ValueError:
        raise ValueError("expected addresses or networks such as 127.0.0.0/8 or ::1") from None


def check_origin(origin: str) -> str:
    """Return the origin of a web page, as browsers write it, or `*`, as it is. Raises ValueError."""
    if origin != "*" and (_ORIGIN.fullmatch(origin) is None or origin != origin.lower()):
        raise ValueError("expected an origin such as https://app.example or http://localhost:3000, or *")
    return origin
