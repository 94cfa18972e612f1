"""Addresses, as they stand in settings and flags: HOST:PORT, which hosts are loopback, and unix:PATH."""

import ipaddress
from typing import Final

__all__ = ["UNIX", "check_admin_address", "check_listen_address", "is_loopback", "split_address"]

UNIX: Final = "unix:"


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


def check_admin_address(address: str) -> str:
    """Return HOST:PORT as it is, or the empty text, which means nowhere. Raises ValueError."""
    if address:
        split_address(address)
    return address
