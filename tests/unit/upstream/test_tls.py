"""Tests of bridge/upstream/tls.py: the context of new connections, and what becomes of files that are renewed."""

import ssl

import pytest
import structlog
import trustme

from bridge.settings import SettingsError, UpstreamSettings
from bridge.upstream.tls import TlsContext


@pytest.fixture
def authority():
    return trustme.CA()


@pytest.fixture
def files(authority, tmp_path):
    write_pair(authority, tmp_path)
    return {"client_cert_file": tmp_path / "cert.pem", "client_key_file": tmp_path / "key.pem"}


def write_pair(authority, folder, parts=("cert", "key")):
    identity = authority.issue_cert("bridge@test")
    if "cert" in parts:
        (folder / "cert.pem").write_bytes(identity.cert_chain_pems[0].bytes())
    if "key" in parts:
        (folder / "key.pem").write_bytes(identity.private_key_pem.bytes())
        (folder / "key.pem").chmod(0o600)


def test_context_is_the_same_while_the_files_are(files):
    tls = TlsContext(UpstreamSettings(**files), check_interval_s=0)
    assert tls.current() is tls.current()
    assert isinstance(tls.current(), ssl.SSLContext)


def test_files_are_looked_at_no_more_often_than_said(files, authority, tmp_path):
    tls = TlsContext(UpstreamSettings(**files), check_interval_s=1000)
    before = tls.current()
    write_pair(authority, tmp_path)
    assert tls.current() is before


def test_renewed_pair_is_used_by_new_connections(files, authority, tmp_path):
    tls = TlsContext(UpstreamSettings(**files), check_interval_s=0)
    before = tls.current()
    write_pair(authority, tmp_path)
    with structlog.testing.capture_logs() as logs:
        assert tls.current() is not before
        tls.current()
    assert [entry["event"] for entry in logs] == ["file reloaded"]


def test_half_a_renewal_leaves_the_last_good_pair_and_is_logged_once(files, authority, tmp_path):
    tls = TlsContext(UpstreamSettings(**files), check_interval_s=0)
    before = tls.current()
    write_pair(authority, tmp_path, parts=("cert",))
    with structlog.testing.capture_logs() as logs:
        assert tls.current() is before
        assert tls.current() is before
    assert [entry["event"] for entry in logs] == ["a changed file can't be used, the last good one stays"]
    write_pair(authority, tmp_path)
    assert tls.current() is not before


def test_authorities_that_are_replaced_are_those_of_new_connections(tmp_path):
    path, old, new = tmp_path / "ca.pem", trustme.CA(), trustme.CA()
    old.cert_pem.write_to_path(path)
    tls = TlsContext(UpstreamSettings(ca_file=path), check_interval_s=0)
    assert tls.current().get_ca_certs(binary_form=True) == [ssl.PEM_cert_to_DER_cert(old.cert_pem.bytes().decode())]
    new.cert_pem.write_to_path(path)
    assert tls.current().get_ca_certs(binary_form=True) == [ssl.PEM_cert_to_DER_cert(new.cert_pem.bytes().decode())]
    path.write_text("half")
    before = tls.current()
    assert tls.current() is before


def test_file_that_is_gone_leaves_the_last_good_pair(files, tmp_path):
    tls = TlsContext(UpstreamSettings(**files), check_interval_s=0)
    before = tls.current()
    (tmp_path / "key.pem").unlink()
    assert tls.current() is before


def test_files_that_cannot_be_used_are_refused_at_the_start(files, tmp_path):
    (tmp_path / "key.pem").write_text("no key")
    with pytest.raises(SettingsError, match=r"client_cert_file, upstream\.client_key_file: expected a certificate"):
        TlsContext(UpstreamSettings(**files))
    with pytest.raises(SettingsError, match=r"upstream\.ca_file: cannot read the file"):
        TlsContext(UpstreamSettings(ca_file=tmp_path / "none.pem"))
    (tmp_path / "ca.pem").write_text("no certificates")
    with pytest.raises(SettingsError, match=r"upstream\.ca_file: expected certificates in PEM"):
        TlsContext(UpstreamSettings(ca_file=tmp_path / "ca.pem"))
