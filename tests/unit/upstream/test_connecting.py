"""How each engine comes to its connection, and that a call without one was never sent."""

import ssl

import pytest
import trustme

from bridge.upstream.exchange import ConnectError, Engine
from tests.kit.certificates import authority, server_context
from tests.kit.upstreams import OK, Peer, answer_with, open_full_backlog, start_server
from tests.kit.waiting import eventually
from tests.unit.upstream.engines import PATH, Outcome, exchange, open_engine

PASSWORD = "p:ss@w/rd"
CREDENTIALS = b"Basic dXNlcjpwOnNzQHcvcmQ="


async def assert_unreachable(engine: Engine, *words: str) -> None:
    """Neither a call nor a look comes through; nothing was sent, and no password is in the words."""
    outcome = await exchange(engine)
    assert outcome == Outcome(None, b"", ConnectError)
    assert not outcome.error.sent
    with pytest.raises(ConnectError) as reached:
        await engine.reach()
    for text in (str(outcome.error), str(reached.value)):
        assert text
        assert "ss" + "@w" not in text
        assert not words or any(word in text.lower() for word in words), text
    await eventually(lambda: not engine.connections)


async def test_refused_connection_was_not_sent(engine_kind, closed_address):
    async with open_engine(engine_kind, f"http://{closed_address}") as engine:
        await assert_unreachable(engine, "refused")


async def test_unknown_name_was_not_sent(engine_kind):
    async with open_engine(engine_kind, "http://gateway.invalid") as engine:
        await assert_unreachable(engine, "name", "known", "resolution")


async def test_connect_that_is_never_answered_ends_in_time(engine_kind):
    with open_full_backlog() as url:
        async with open_engine(engine_kind, url, connect_timeout_s=0.2) as engine:
            await assert_unreachable(engine, "connect_timeout_s")


async def test_tls_that_is_never_answered_ends_in_time(engine_kind):
    async def serve(peer):
        await peer.read_to_end()

    async with (
        start_server(serve, scheme="https") as server,
        open_engine(engine_kind, server.url, connect_timeout_s=0.2) as engine,
    ):
        await assert_unreachable(engine, "connect_timeout_s")


async def test_peer_that_speaks_no_tls_was_not_sent_anything(engine_kind):
    async def serve(peer):
        await peer.reader.read(1)
        await peer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        await peer.read_to_end()

    async with start_server(serve, scheme="https") as server, open_engine(engine_kind, server.url) as engine:
        await assert_unreachable(engine, "ssl", "tls")


async def test_certificate_of_a_stranger_is_refused(engine_kind):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    async with start_server(answer_with(OK), tls=context) as server, open_engine(engine_kind, server.url) as engine:
        await assert_unreachable(engine, "certificate")
    assert not server.requests


async def test_certificate_for_another_name_is_refused(engine_kind):
    context = server_context("gateway.invalid")
    async with start_server(answer_with(OK), tls=context) as server, open_engine(engine_kind, server.url) as engine:
        await assert_unreachable(engine, "certificate")
    assert not server.requests


async def test_certificate_of_the_settings_authority_is_good(engine_kind):
    async with (
        start_server(answer_with(OK), tls=server_context()) as server,
        open_engine(engine_kind, server.url) as engine,
    ):
        assert await exchange(engine) == Outcome(200, b"{}")


async def test_client_certificate_is_shown(engine_kind, tmp_path):
    async def serve(peer):
        shown.append(peer.writer.get_extra_info("peercert")["subjectAltName"])
        await answer_with(OK)(peer)

    shown = []
    context = server_context()
    context.verify_mode = ssl.CERT_REQUIRED
    authority().configure_trust(context)
    leaf = authority().issue_cert("bridge.example")
    leaf.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    leaf.private_key_pem.write_to_path(tmp_path / "key.pem")
    (tmp_path / "key.pem").chmod(0o600)
    files = {"client_cert_file": tmp_path / "cert.pem", "client_key_file": tmp_path / "key.pem"}
    async with start_server(serve, tls=context) as server, open_engine(engine_kind, server.url, **files) as engine:
        assert await exchange(engine) == Outcome(200, b"{}")
    assert shown == [(("DNS", "bridge.example"),)]


async def test_unix_socket_is_connected_to(engine_kind, tmp_path):
    path = tmp_path / "gateway.sock"
    async with (
        start_server(answer_with(OK), unix=path) as server,
        open_engine(engine_kind, f"unix:{path}") as engine,
    ):
        await engine.reach()
        assert await exchange(engine) == Outcome(200, b"{}")
    assert server.requests[0].startswith(f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\n".encode())


async def test_unix_socket_that_is_not_there_was_not_sent_anything(engine_kind, tmp_path):
    async with open_engine(engine_kind, f"unix:{tmp_path / 'gateway.sock'}") as engine:
        await assert_unreachable(engine, "no such file")


async def test_reach_connects_and_sends_nothing(engine_kind):
    async def serve(peer):
        assert await peer.read_to_end() == b""

    async with start_server(serve) as server, open_engine(engine_kind, server.url) as engine:
        await engine.reach()
        await eventually(lambda: server.peers and server.peers[0].ended.is_set())


# Proxies


def proxy_url(address: str) -> str:
    return address.replace("//", "//user:p%3Ass%40w%2Frd@")


async def test_plain_request_goes_to_the_proxy_whole_with_its_password(engine_kind):
    async with (
        start_server(answer_with(OK)) as proxy,
        open_engine(engine_kind, "http://gateway.invalid:81", proxy=proxy_url(proxy.url)) as engine,
    ):
        assert await exchange(engine) == Outcome(200, b"{}")
    head = proxy.requests[0].lower()
    assert head.startswith(f"post http://gateway.invalid:81{PATH} http/1.1\r\n".encode())
    assert b"host: gateway.invalid:81\r\n" in head
    assert b"proxy-authorization: " + CREDENTIALS.lower() in head


async def read_connect(peer: Peer) -> bytes:
    return await peer.reader.readuntil(b"\r\n\r\n")


async def test_encrypted_request_goes_through_a_tunnel_and_the_password_does_not(engine_kind):
    connects = []

    async def tunnel(peer):
        connects.append(await read_connect(peer))
        await peer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await peer.relay(server.port)

    async with (
        start_server(answer_with(OK), tls=server_context("gateway.invalid")) as server,
        start_server(tunnel) as proxy,
        open_engine(engine_kind, "https://gateway.invalid", proxy=proxy_url(proxy.url)) as engine,
    ):
        await engine.reach()
        assert await exchange(engine) == Outcome(200, b"{}")
    for connect in connects:
        assert connect.startswith(b"CONNECT gateway.invalid:443 HTTP/1.1\r\n")
        assert b"proxy-authorization: " + CREDENTIALS.lower() in connect.lower()
    assert len(connects) == 2
    assert b"authorization" not in server.requests[0].lower()
    assert b"host: gateway.invalid\r\n" in server.requests[0]


ANSWERS = {
    "407": b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n",
    "502": b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n",
    "no HTTP": b"SSH-2.0-OpenSSH\r\n\r\n",
    "no byte": b"",
    "half a head": b"HTTP/1.1 200 OK\r\nvia",
    "tunnel that ends": b"HTTP/1.1 200 OK\r\n\r\n",
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
async def test_proxy_that_gives_no_tunnel_was_not_sent_the_request(engine_kind, answer):
    async def serve(peer):
        await read_connect(peer)
        await peer.write(answer)

    async with (
        start_server(serve) as proxy,
        open_engine(engine_kind, "https://gateway.invalid", proxy=proxy_url(proxy.url)) as engine,
    ):
        await assert_unreachable(engine)


async def test_proxy_that_says_nothing_ends_in_time(engine_kind):
    async def serve(peer):
        await peer.read_to_end()

    async with (
        start_server(serve) as proxy,
        open_engine(
            engine_kind, "https://gateway.invalid", proxy=proxy_url(proxy.url), connect_timeout_s=0.2
        ) as engine,
    ):
        await assert_unreachable(engine, "connect_timeout_s")


async def test_proxy_that_is_not_there_was_not_sent_anything(engine_kind, closed_address):
    proxy = proxy_url(f"http://{closed_address}")
    async with open_engine(engine_kind, "https://gateway.invalid", proxy=proxy) as engine:
        await assert_unreachable(engine, "refused")
