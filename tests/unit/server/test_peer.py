"""Tests of bridge/server/peer.py: addresses and certificates in the form that gRPC has."""

import ssl

import pytest

from bridge.server.peer import CERTIFICATE, format_peer, name_certificate, read_certificate
from tests.kit.certificates import DNS, create_pem

PEERS = {
    "IPv4": (("10.0.0.1", 7), "ipv4:10.0.0.1:7"),
    "IPv6": (("::1", 7, 0, 0), "ipv6:%5B::1%5D:7"),
    "an ASGI server's list": (["10.0.0.1", 7], "ipv4:10.0.0.1:7"),
    "a Unix socket": ("", "unix:"),
    "a Unix socket, of an ASGI server": (("/a", None), "unix:"),
    "none": (None, "unix:"),
}


@pytest.mark.parametrize(("name", "peer"), PEERS.values(), ids=PEERS)
def test_address_is_written_as_grpc_writes_it(name, peer):
    assert format_peer(name) == peer


def test_certificate_has_its_name_in_grpc():
    pem = create_pem(DNS("team-a.example"))
    (named,) = name_certificate(pem.decode())[CERTIFICATE]
    assert ssl.PEM_cert_to_DER_cert(named.decode()) == ssl.PEM_cert_to_DER_cert(pem.decode())


def test_without_tls_there_is_no_certificate():
    assert name_certificate(read_certificate(None)) == {}
