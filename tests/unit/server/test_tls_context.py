"""Tests of bridge/server/tls_context.py; tests/unit/server/test_listeners.py has the refusals of files."""

import gc
import ssl

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from bridge.reload import list_files, reload_now
from bridge.server.handshakes import Handshakes
from bridge.server.tls_context import check_files, open_context
from bridge.settings import SettingsError, TlsSettings
from tests.kit.certificates import Certificates


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> ssl.SSLObject:
    """Return the server's side of a handshake in memory. Raises ssl.SSLError of either side."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    theirs = client.wrap_bio(to_client, to_server, server_hostname="localhost")
    left = [theirs, ours]
    for _ in range(20):
        for side in list(left):
            try:
                side.do_handshake()
                left.remove(side)
            except ssl.SSLWantReadError:
                pass
        if not left:
            return ours
    raise AssertionError("no handshake")


def make_client(root: bytes, certificate=None, alpn=("http/1.1",)) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=root.decode())
    context.set_alpn_protocols(list(alpn))
    if certificate is not None:
        certificate.configure_cert(context)
    return context


@pytest.fixture
def certificates(tmp_path):
    return Certificates(tmp_path)


def test_context_has_the_certificate_and_the_protocols(certificates):
    with open_context(TlsSettings(**certificates.settings), alpn=["http/1.1"]) as context:
        assert shake_hands(context, make_client(certificates.root)).selected_alpn_protocol() == "http/1.1"


def test_callers_must_have_a_certificate_if_there_is_an_authority(certificates):
    settings = TlsSettings(**certificates.settings, client_ca_file=certificates.ca_file)
    with open_context(settings, alpn=["http/1.1"]) as context:
        known = certificates.authority.issue_cert("team-a.example")
        assert shake_hands(context, make_client(certificates.root, known)).getpeercert(binary_form=True)
        for stranger in (None, trustme.CA().issue_cert("team-a.example")):
            with pytest.raises(ssl.SSLError):
                shake_hands(context, make_client(certificates.root, stranger))


def test_handshakes_that_began_and_that_failed_are_counted(certificates):
    settings = TlsSettings(**certificates.settings, client_ca_file=certificates.ca_file)
    handshakes = Handshakes()
    with open_context(settings, alpn=["http/1.1"], handshakes=handshakes) as context:
        shake_hands(context, make_client(certificates.root, certificates.authority.issue_cert("team-a.example")))
        assert (handshakes.begun, handshakes.failures) == (1, {})
        with pytest.raises(ssl.SSLError):
            shake_hands(context, make_client(certificates.root))
        assert (handshakes.begun, handshakes.failures) == (2, {"PEER_DID_NOT_RETURN_A_CERTIFICATE": 1})


def test_renewed_files_are_used_for_new_handshakes(certificates, tmp_path):
    settings = TlsSettings(**certificates.settings, client_ca_file=certificates.ca_file)
    with open_context(settings, alpn=["http/1.1"]) as context:
        old = make_client(certificates.root, certificates.authority.issue_cert("a"))
        shake_hands(context, old)
        renewed = Certificates(tmp_path)
        new = make_client(renewed.root, renewed.authority.issue_cert("a"))
        reload_now()
        shake_hands(context, new)
        with pytest.raises(ssl.SSLError):
            shake_hands(context, old)


def test_files_are_forgotten_afterwards(certificates):
    gc.disable()
    try:
        before = len(list(list_files()))
        with open_context(TlsSettings(**certificates.settings), alpn=["http/1.1"]):
            assert len(list(list_files())) == before + 1
        assert len(list(list_files())) == before
    finally:
        gc.enable()


def test_files_that_cannot_be_used_are_refused(certificates):
    certificates.key_file.write_bytes(trustme.CA().issue_cert("localhost").private_key_pem.bytes())
    with pytest.raises(SettingsError, match="expected a certificate and its key in PEM"):
        check_files(TlsSettings(**certificates.settings))


def test_key_with_a_password_is_refused(certificates):
    key = load_pem_private_key(certificates.key_file.read_bytes(), None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"sesame"))
    certificates.key_file.write_bytes(locked)
    with pytest.raises(SettingsError, match="a key with a password"):
        check_files(TlsSettings(**certificates.settings))


def test_authorities_that_are_none_are_refused(certificates):
    certificates.ca_file.write_text("nothing")
    with pytest.raises(SettingsError, match=r"tls\.client_ca_file: expected certificates in PEM"):
        check_files(TlsSettings(**certificates.settings, client_ca_file=certificates.ca_file))
