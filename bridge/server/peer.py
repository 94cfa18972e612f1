"""Who is at the other end of a connection, as gRPC writes it, whichever transport a call came by."""

import ssl
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import quote

from bridge.server.rpc import Certificate
from bridge.settings import UNIX

__all__ = ["CERTIFICATE", "format_peer", "name_certificate", "read_certificate"]

CERTIFICATE: Final = "x509_pem_cert"
"""The name in a Certificate of the certificate itself, as PEM."""
_NONE: Final[Certificate] = {}


def format_peer(name: Sequence[Any] | None) -> str:
    """Return a peer's address from its host and port. One without a port is at a Unix socket."""
    if not isinstance(name, (tuple, list)) or not name[1]:
        return UNIX
    host, port = name[:2]
    return f"ipv6:{quote(f'[{host}]', safe=':')}:{port}" if ":" in host else f"ipv4:{host}:{port}"


def read_certificate(connection: ssl.SSLObject | None) -> str:
    """Return the certificate of a connection's peer as PEM, "" without one."""
    der = connection.getpeercert(binary_form=True) if connection is not None else None
    return ssl.DER_cert_to_PEM_cert(der) if der else ""


def name_certificate(pem: str) -> Certificate:
    """Return a certificate by its name in gRPC; empty without one."""
    return {CERTIFICATE: [pem.encode("ascii")]} if pem else _NONE
