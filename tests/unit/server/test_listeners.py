"""Tests of bridge/server/listeners.py: what is bound, and what is refused with which words."""

import socket

import grpc
import pytest
import trustme
from structlog.testing import capture_logs

from bridge.server.listeners import bind
from bridge.settings import Settings, SettingsError

PAIR = "tls.cert_file, tls.key_file: expected a certificate and its key in PEM, found: "


@pytest.fixture
async def server():
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    yield server
    await server.stop(None)


@pytest.fixture
def tls(tmp_path):
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    files = {name: tmp_path / f"{name}.pem" for name in ("cert_file", "key_file", "client_ca_file")}
    files["cert_file"].write_bytes(issued.cert_chain_pems[0].bytes())
    files["key_file"].write_bytes(issued.private_key_pem.bytes())
    files["key_file"].chmod(0o600)
    files["client_ca_file"].write_bytes(authority.cert_pem.bytes())
    return files


def read_refusal(server, **settings) -> str:
    with pytest.raises(SettingsError) as caught:
        bind(server, Settings(**{"listen": "127.0.0.1:0"} | settings))
    return str(caught.value)


async def test_free_port_is_in_the_address(server):
    host, _, port = bind(server, Settings(listen="127.0.0.1:0")).rpartition(":")
    assert host == "127.0.0.1"
    assert int(port) > 0


async def test_socket_that_nobody_serves_is_bound(server, tmp_path):
    listen = f"unix:{tmp_path}/bridge.sock"
    assert bind(server, Settings(listen=listen)) == listen


async def test_socket_in_use_is_refused(server, tmp_path):
    path = str(tmp_path / "bridge.sock")
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(path)
        taken.listen()
        assert read_refusal(server, listen=f"unix:{path}") == f"listen: unix:{path} is in use by another process"


async def test_port_in_use_is_refused_with_the_reason(server):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        message = read_refusal(server, listen=listen)
    assert message == f"listen: expected an address that can be bound, found '{listen}': Address already in use"


async def test_address_of_another_machine_is_refused_with_the_reason(server):
    message = read_refusal(server, listen="192.0.2.1:0", insecure=True)
    assert message.endswith("found '192.0.2.1:0': Cannot assign requested address")


async def test_plain_text_beyond_loopback_has_to_be_allowed_and_is_a_warning(server):
    expected = "a loopback address, TLS (tls.cert_file) or insecure = true"
    assert read_refusal(server, listen="0.0.0.0:0") == f"listen: expected {expected}, found '0.0.0.0:0' without TLS"
    with capture_logs() as lines:
        bind(server, Settings(listen="127.0.0.1:0", insecure=True))
        assert lines == []
        bind(server, Settings(listen="0.0.0.0:0", insecure=True))
    assert lines == [
        {
            "event": "serving without TLS at an address other than loopback: insecure is true",
            "listen": "0.0.0.0:0",
            "log_level": "warning",
        }
    ]


OWN_KEY = {"api_key": "sk-own"}


@pytest.mark.parametrize("key", [OWN_KEY, {"api_key_file": "/key"}], ids=["api_key", "api_key_file"])
async def test_own_key_for_everybody_beyond_loopback_has_to_be_allowed_and_is_a_warning(server, key):
    message = read_refusal(server, listen="0.0.0.0:0", insecure=True, upstream=key)
    expected = "a loopback address, tokens_file, tls.client_ca_file, mesh.identity_header or open = true"
    assert message == f"listen: expected {expected} beside the bridge's own key, found '0.0.0.0:0'"
    with capture_logs() as lines:
        bind(server, Settings(listen="0.0.0.0:0", insecure=True, open=True, upstream=key))
    assert [line["event"] for line in lines][1:] == [
        "everybody who reaches the call port may spend on the bridge's own key: open is true"
    ]


async def test_own_key_for_callers_that_are_known_or_near_needs_no_permission(server, tls, tmp_path):
    known = {"listen": "0.0.0.0:0", "upstream": OWN_KEY}
    with capture_logs() as lines:
        bind(server, Settings(listen="127.0.0.1:0", upstream=OWN_KEY))
        bind(server, Settings(listen=f"unix:{tmp_path}/socket", upstream=OWN_KEY))
        bind(server, Settings(tls=tls | {"client_ca_file": tls["cert_file"]}, **known))
        bind(server, Settings(tls=tls, tokens_file=tmp_path / "tokens", **known))
    assert lines == []


async def test_certificates_are_bound_at_any_address(server, tls):
    assert bind(server, Settings(listen="0.0.0.0:0", tls=tls)).startswith("0.0.0.0:")


async def test_key_that_everybody_can_read_is_refused(server, tls):
    tls["key_file"].chmod(0o644)
    message = read_refusal(server, tls=tls)
    assert message == f"tls.key_file: the file {tls['key_file']} must not be readable by everybody (chmod o-r)"


async def test_missing_file_is_refused(server, tls, tmp_path):
    message = read_refusal(server, tls=tls | {"cert_file": tmp_path / "nowhere"})
    assert message == f"tls.cert_file: cannot read the file {tmp_path}/nowhere: No such file or directory"


def write_key_of_another_certificate(tls):
    tls["key_file"].write_bytes(trustme.CA().issue_cert("localhost").private_key_pem.bytes())


def write_no_certificate(tls):
    tls["cert_file"].write_text("nothing")


def write_no_authority(tls):
    tls["client_ca_file"].write_text("nothing")


WRONG = {
    "the key of another certificate": (write_key_of_another_certificate, PAIR),
    "no certificate": (write_no_certificate, PAIR),
    "no authority": (write_no_authority, "tls.client_ca_file: expected certificates in PEM, found: "),
}


@pytest.mark.parametrize(("damage", "message"), WRONG.values(), ids=WRONG)
async def test_files_that_openssl_refuses_are_refused_with_its_reason(server, tls, damage, message):
    damage(tls)
    assert read_refusal(server, tls=tls).startswith(message)
