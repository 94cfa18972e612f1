"""Listeners: TLS with renewed certificates, mTLS and allowed identities, unix sockets, settings that are refused."""

import asyncio
import socket

import grpc
import pytest
import trustme
from structlog.testing import capture_logs

from bridge.server.listeners import bind
from bridge.server.server import run_server
from bridge.settings import Settings, SettingsError
from tests.kit.certificates import Certificates
from tests.kit.client import Bridge, chat
from tests.kit.waiting import WAIT_S, eventually


@pytest.fixture
def certificates(tmp_path):
    return Certificates(tmp_path)


def open_channel(bridge, certificates, client=None):
    """Open a TLS channel with a connection of its own, and with a client's certificate if there is one."""
    pair = (client.private_key_pem.bytes(), client.cert_chain_pems[0].bytes()) if client else (None, None)
    credentials = grpc.ssl_channel_credentials(certificates.root, *pair)
    options = [("grpc.ssl_target_name_override", "localhost"), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.secure_channel(bridge.address, credentials, options=options)


async def ask(bridge, certificates, client=None, **options):
    async with open_channel(bridge, certificates, client) as channel:
        return await Bridge(bridge.address, channel).ask(chat("Hi"), timeout=WAIT_S, **options)


async def test_tls_serves_and_plain_text_is_refused(start_bridge, certificates):
    bridge = await start_bridge(tls=certificates.settings)
    assert (await ask(bridge, certificates)).reply.choices[0].message.text == "You said: Hi"
    assert (await bridge.ask(chat("Hi"), timeout=WAIT_S)).failure.code == "UNAVAILABLE"


async def test_renewed_certificate_is_used_for_new_connections_and_old_ones_stay(start_bridge, certificates):
    bridge = await start_bridge(tls=certificates.settings)
    async with open_channel(bridge, certificates) as channel:
        old = Bridge(bridge.address, channel)
        assert (await old.ask(chat("Hi"))).failure is None
        certificates.authority = trustme.CA()
        certificates.renew()
        assert (await old.ask(chat("Hi"))).failure is None
        async with asyncio.timeout(
            30
        ):  # until the client, which trusts only the old authority, gets the new certificate
            while (await ask(bridge, certificates)).failure is None:
                pass
        certificates.root = certificates.authority.cert_pem.bytes()
        assert (await ask(bridge, certificates)).failure is None


async def test_half_renewed_pair_leaves_the_old_one_in_use(start_bridge, certificates):
    bridge = await start_bridge(tls=certificates.settings)
    with capture_logs() as lines:
        certificates.key_file.write_bytes(trustme.CA().issue_cert("localhost").private_key_pem.bytes())
        async with asyncio.timeout(30):
            while not lines:
                assert (await ask(bridge, certificates)).failure is None
    assert (await ask(bridge, certificates)).failure is None
    assert [(line["log_level"], line["setting"]) for line in lines] == [("warning", "tls.cert_file, tls.key_file")]
    assert "expected a certificate and its key" in lines[0]["error"]


async def test_caller_without_a_certificate_of_the_authority_is_refused(start_bridge, certificates):
    bridge = await start_bridge(tls=certificates.settings | {"client_ca_file": certificates.ca_file})
    known = certificates.authority.issue_cert("team-a.example")
    stranger = trustme.CA().issue_cert("team-a.example")
    assert (await ask(bridge, certificates, known)).failure is None
    assert (await ask(bridge, certificates)).failure.code == "UNAVAILABLE"
    assert (await ask(bridge, certificates, stranger)).failure.code == "UNAVAILABLE"


async def test_only_identities_on_the_list_may_call(start_bridge, certificates):
    tls = certificates.settings | {"client_ca_file": certificates.ca_file, "allowed_identities": ("team-a.example",)}
    bridge = await start_bridge(tls=tls)
    assert (await ask(bridge, certificates, certificates.authority.issue_cert("team-a.example"))).failure is None
    failure = (await ask(bridge, certificates, certificates.authority.issue_cert("team-b.example"))).failure
    assert (failure.code, failure.reason) == ("PERMISSION_DENIED", "CALLER_DENIED")
    assert failure.message == (
        "the identity team-b.example of the caller's certificate is not in the bridge's list (tls.allowed_identities)"
    )


async def test_caller_who_is_denied_is_named_in_its_record(start_bridge, certificates):
    tls = certificates.settings | {"client_ca_file": certificates.ca_file, "allowed_identities": ("team-a.example",)}
    bridge = await start_bridge(tls=tls)
    answer = await ask(bridge, certificates, certificates.authority.issue_cert("team-b.example"))
    record = await bridge.records.next()
    assert (record.reason, record.caller) == ("CALLER_DENIED", "team-b.example")
    assert record.detail == answer.failure.message


async def test_handshakes_are_counted_whether_they_succeed_or_not(certificates):
    counted = []
    server = grpc.aio.server()
    settings = Settings(listen="127.0.0.1:0", tls=certificates.settings | {"client_ca_file": certificates.ca_file})
    address = bind(server, settings, lambda: counted.append(1))
    await server.start()
    try:
        port = int(address.rpartition(":")[2])
        for number in range(1, 4):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            assert await reader.read() is not None
            writer.close()
            await eventually(lambda: len(counted) == number)  # noqa: B023
    finally:
        await server.stop(None)


async def test_with_tokens_and_certificates_a_caller_needs_both(start_bridge, emulator, certificates, tmp_path):
    (tokens := tmp_path / "tokens").write_text("team-a alpha-token\n")
    tokens.chmod(0o600)
    bridge = await start_bridge(
        tls=certificates.settings | {"client_ca_file": certificates.ca_file},
        tokens_file=tokens,
        upstream={"api_key": "sk-ollm-own"},
        tags={"identity": "team"},
    )
    known = certificates.authority.issue_cert("team-b.example")
    token = [("authorization", "Bearer alpha-token")]
    assert (await ask(bridge, certificates, metadata=token)).failure.code == "UNAVAILABLE"
    assert (await ask(bridge, certificates, known)).failure.reason == "CALLER_UNAUTHENTICATED"
    assert not emulator.exchanges
    assert (await ask(bridge, certificates, known, metadata=token)).failure is None
    assert emulator.exchanges[-1].headers["authorization"] == "Bearer sk-ollm-own"
    assert emulator.exchanges[-1].tags == {"team": "team-b.example"}


async def test_unix_socket_accepts_calls_and_cannot_be_bound_twice(start_bridge, emulator, tmp_path):
    path = f"unix:{tmp_path}/bridge.sock"
    bridge = await start_bridge(listen=path)
    assert bridge.address == path
    assert (await bridge.ask(chat("Hi"))).failure is None
    with pytest.raises(SettingsError, match="is in use by another process"):
        async with run_server(Settings(listen=path, upstream={"base_url": emulator.url})):
            pass
    assert (await bridge.ask(chat("Hi"))).failure is None


async def refuse_start(**settings):
    """Return the error with which a server of these settings does not start."""
    with pytest.raises(SettingsError) as caught:
        async with run_server(Settings(**{"listen": "127.0.0.1:0"} | settings)):
            pass
    return str(caught.value)


async def test_plain_text_beyond_loopback_needs_a_setting_and_is_logged(start_bridge):
    message = await refuse_start(listen="0.0.0.0:0")
    assert message.startswith("listen: expected a loopback address, TLS (tls.cert_file) or insecure = true")
    with capture_logs() as lines:
        await start_bridge(listen="127.0.0.1:0", insecure=True)
        assert lines == []
        bridge = await start_bridge(listen="0.0.0.0:0", insecure=True)
    assert bridge.address.startswith("0.0.0.0:")
    assert [(line["log_level"], line["listen"]) for line in lines] == [("warning", "0.0.0.0:0")]
    assert "without TLS" in lines[0]["event"]


async def test_port_in_use_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert "can be bound" in await refuse_start(listen=f"127.0.0.1:{listener.getsockname()[1]}")


async def test_key_that_everybody_can_read_is_an_error(certificates):
    certificates.key_file.chmod(0o644)
    assert (await refuse_start(tls=certificates.settings)).startswith("tls.key_file: the file ")


async def test_certificate_with_the_key_of_another_is_an_error(certificates):
    certificates.key_file.write_bytes(trustme.CA().issue_cert("localhost").private_key_pem.bytes())
    assert "expected a certificate and its key" in await refuse_start(tls=certificates.settings)


async def test_files_without_certificates_are_an_error(certificates, tmp_path):
    assert "cannot read the file" in await refuse_start(tls=certificates.settings | {"cert_file": tmp_path / "no"})
    certificates.ca_file.write_text("nothing")
    tls = certificates.settings | {"client_ca_file": certificates.ca_file}
    assert "expected certificates in PEM" in await refuse_start(tls=tls)
