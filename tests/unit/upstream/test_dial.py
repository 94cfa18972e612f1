"""Tests of bridge/upstream/dial.py: what stands between the bridge and the gateway, by real sockets, on both loops."""

import asyncio
import socket
import ssl

import pytest
import trustme

from bridge.settings import SettingsError, UpstreamSettings
from bridge.upstream.dial import Dialer
from bridge.upstream.exchange import ConnectError
from tests.kit.upstreams import OK, answer_each, open_full_backlog, start_server
from tests.kit.waiting import eventually
from tests.unit.upstream.native_engine import exchange, open_engine


@pytest.fixture
def authority():
    return trustme.CA()


@pytest.fixture
def ca_file(authority, tmp_path):
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


def make_context(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


async def fail_to_reach(url: str, **settings) -> str:
    async with open_engine(url, **settings) as engine:
        with pytest.raises(ConnectError) as caught:
            await exchange(engine)
        assert not caught.value.sent
        assert engine.connections == 0
        with pytest.raises(ConnectError):
            await engine.reach()
    return str(caught.value)


# What is written


async def test_unix_socket_gets_requests_for_localhost(tmp_path):
    seen = []

    async def serve(peer):
        seen.append(await peer.read_request())
        await peer.write(OK)

    path = tmp_path / "gateway.sock"
    async with start_server(serve, unix=path), open_engine(f"unix:{path}") as engine:
        await engine.reach()
        assert await exchange(engine) == (200, b"{}")
    assert seen[0].startswith(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n")


async def test_unix_socket_that_is_not_there_is_no_connection(tmp_path):
    assert await fail_to_reach(f"unix:{tmp_path / 'none.sock'}") == "no such file or directory"


TARGETS = {
    "a path": ("http://gateway.test/team/a%20b", "POST /team/a%20b HTTP/1.1\r\nhost: gateway.test\r\n"),
    "a path with blanks": ("http://gateway.test/a b/é", "POST /a%20b/%C3%A9 HTTP/1.1\r\nhost: gateway.test\r\n"),
    "a port": ("http://gateway.test:8080/x", "POST /x HTTP/1.1\r\nhost: gateway.test:8080\r\n"),
    "the scheme's port": ("https://gateway.test:443/x", "POST /x HTTP/1.1\r\nhost: gateway.test\r\n"),
    "IPv6": ("http://[::1]:81/x", "POST /x HTTP/1.1\r\nhost: [::1]:81\r\n"),
    "a name beyond ASCII": ("http://gätewäy.test/x", "POST /x HTTP/1.1\r\nhost: xn--gtewy-grad.test\r\n"),
}


@pytest.mark.parametrize(("url", "lines"), TARGETS.values(), ids=TARGETS)
def test_first_lines_name_path_and_host(url, lines):
    assert Dialer(UpstreamSettings(), url).request_lines == lines


PROXIED = {
    "plain": ("http://gateway.test/x", "POST http://gateway.test/x HTTP/1.1\r\nhost: gateway.test\r\n{}"),
    "encrypted": ("https://gateway.test/x", "POST /x HTTP/1.1\r\nhost: gateway.test\r\n"),
}


@pytest.mark.parametrize(("url", "lines"), PROXIED.values(), ids=PROXIED)
def test_first_lines_show_a_proxy_its_password_and_the_gateway_none(url, lines):
    settings = UpstreamSettings(proxy="http://us%3Aer:p%40ss@proxy.test")
    credentials = "proxy-authorization: Basic dXM6ZXI6cEBzcw==\r\n"  # us:er:p@ss
    assert Dialer(settings, url).request_lines == lines.format(credentials)


# Proxies


async def test_plain_request_goes_to_the_proxy_with_its_whole_url():
    seen = []

    async def serve(peer):
        seen.append(await peer.read_request())
        await peer.write(OK)

    async with (
        start_server(serve) as proxy,
        open_engine("http://gateway.invalid", proxy=f"http://{proxy.address}") as engine,
    ):
        assert await exchange(engine) == (200, b"{}")
    assert seen[0].startswith(b"POST http://gateway.invalid/v1/chat/completions HTTP/1.1\r\nhost: gateway.invalid\r\n")


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_encrypted_request_goes_through_a_tunnel(scheme, authority, ca_file, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(ca_file))  # whom the proxy is trusted by
    heads = []

    async def serve_proxy(peer):
        heads.append(await peer.read_head())
        await peer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await peer.relay(gateway.port)

    proxy_tls = make_context(authority, "localhost") if scheme == "https" else None
    async with (
        start_server(answer_each, tls=make_context(authority, "gateway.test")) as gateway,
        start_server(serve_proxy, tls=proxy_tls) as proxy,
        open_engine(
            "https://gateway.test", proxy=f"{scheme}://user:sesame@localhost:{proxy.port}", ca_file=ca_file
        ) as engine,
    ):
        await engine.reach()
        assert await exchange(engine, b"one") == (200, b"one")
        assert await exchange(engine, b"two") == (200, b"two")
    assert len(heads) == 2
    lines = b"CONNECT gateway.test:443 HTTP/1.1\r\nhost: gateway.test:443\r\n"
    assert heads[1] == lines + b"proxy-authorization: Basic dXNlcjpzZXNhbWU=\r\n\r\n"


REFUSALS = {
    "a refusal": (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "the proxy refused the tunnel (HTTP 407)"),
    "no HTTP": (b"SSH-2.0-OpenSSH\r\n\r\n", "the proxy's answer is not HTTP"),
    "half a head": (b"HTTP/1.1 200 OK\r\n", "the proxy ended the connection"),
    "a head too large": (
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 10_000,
        "the head of the proxy's answer has more than 16384 bytes",
    ),
    "no TLS behind it": (b"HTTP/1.1 200 OK\r\n\r\n" + b"HTTP/1.1 400 Bad\r\n\r\n" * 10, None),
}


@pytest.mark.parametrize(("answer", "words"), REFUSALS.values(), ids=REFUSALS)
async def test_tunnel_that_does_not_come_about_is_no_connection(answer, words):
    async def serve(peer):
        await peer.read_head()
        await peer.write(answer)

    async with start_server(serve) as proxy:
        found = await fail_to_reach("https://gateway.test", proxy=f"http://user:sesame@{proxy.address}")
    assert words is None or found == words
    assert "sesame" not in found


async def test_proxy_that_is_not_there_is_no_connection_and_its_password_is_not_said(closed_address):
    found = await fail_to_reach("http://gateway.invalid", proxy=f"http://user:sesame@{closed_address}")
    assert found == "connection refused"


def test_proxy_that_is_none_of_http_is_refused_at_the_start():
    with pytest.raises(SettingsError, match=r"upstream\.proxy: expected http:// or https://") as caught:
        Dialer(UpstreamSettings(proxy="socks5://user:sesame@proxy.test:1080"), "http://gateway.test/")
    assert "sesame" not in str(caught.value)


# Names, addresses, time


async def test_name_that_does_not_resolve_is_no_connection(monkeypatch):
    def fail(*_args, **_named):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)  # the resolver of the machine may take seconds
    monkeypatch.setattr(asyncio.get_running_loop().__class__, "getaddrinfo", fail, raising=False)
    assert await fail_to_reach("http://gateway.invalid") == "name or service not known"


async def test_address_that_refuses_gives_way_to_the_next_one():
    async with start_server(answer_each) as server, open_engine(f"http://localhost:{server.port}") as engine:
        assert await exchange(engine) == (200, b"{}")  # localhost is ::1 too, where nobody listens


async def test_connect_that_hangs_ends_after_its_time():
    with open_full_backlog() as url:
        found = await fail_to_reach(url, connect_timeout_s=0.1)
    assert found == "no connection within 0.1 s (upstream.connect_timeout_s)"


async def test_tls_that_hangs_ends_after_its_time():
    async with start_server(lambda peer: peer.read_to_end()) as server:
        found = await fail_to_reach(f"https://{server.address}", connect_timeout_s=0.1)
        await eventually(lambda: all(task.done() for task in server.tasks))
    assert found == "no connection within 0.1 s (upstream.connect_timeout_s)"


# TLS


async def test_certificate_of_an_authority_of_the_settings_is_trusted(authority, ca_file):
    async with (
        start_server(answer_each, tls=make_context(authority, "localhost")) as server,
        open_engine(f"https://localhost:{server.port}", ca_file=ca_file) as engine,
    ):
        assert await exchange(engine, b"one") == (200, b"one")
        assert await exchange(engine, b"two") == (200, b"two")
        assert len(server.peers) == 1


DISTRUSTED = {
    "another authority": (
        "localhost",
        False,
        "TLS: certificate verification failed: unable to get local issuer certificate",
    ),
    "another name": (
        "gateway.test",
        True,
        "TLS: certificate verification failed: Hostname mismatch, certificate is not valid for 'localhost'.",
    ),
}


@pytest.mark.parametrize(("name", "is_trusted", "words"), DISTRUSTED.values(), ids=DISTRUSTED)
async def test_certificate_that_is_not_trusted_is_no_connection(name, is_trusted, words, authority, ca_file):
    issuer = authority if is_trusted else trustme.CA()
    async with start_server(answer_each, tls=make_context(issuer, name)) as server:
        assert await fail_to_reach(f"https://localhost:{server.port}", ca_file=ca_file) == words


async def test_tls_to_a_server_without_it_is_no_connection():
    async def serve(peer):
        await peer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with start_server(serve) as server:
        found = await fail_to_reach(f"https://{server.address}")
    assert found.startswith("TLS: ") or found == "connection reset"  # uvloop does not say why


async def test_answer_before_the_request_is_out_is_not_kept_over_tls_either(authority, ca_file):
    async def serve(peer):
        await peer.read_head()
        await peer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\n{}")
        await answered.wait()
        await peer.read_to_end()

    answered = asyncio.Event()
    async with (
        start_server(serve, tls=make_context(authority, "localhost")) as server,
        open_engine(f"https://localhost:{server.port}", ca_file=ca_file) as engine,
    ):
        assert await exchange(engine, bytes(30_000_000)) == (413, b"{}")
        assert engine.connections == 0
        answered.set()


async def test_client_certificate_is_shown(authority, ca_file, tmp_path):
    identity = authority.issue_cert("bridge@test")
    identity.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    identity.private_key_pem.write_to_path(tmp_path / "key.pem")
    (tmp_path / "key.pem").chmod(0o600)
    context = make_context(authority, "localhost")
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    seen = []

    async def serve(peer):
        seen.append(peer.writer.get_extra_info("peercert")["subjectAltName"])
        await answer_each(peer)

    files = {"client_cert_file": tmp_path / "cert.pem", "client_key_file": tmp_path / "key.pem"}
    async with start_server(serve, tls=context) as server:
        url = f"https://localhost:{server.port}"
        async with open_engine(url, ca_file=ca_file, **files) as engine:
            assert await exchange(engine) == (200, b"{}")
    assert seen == [(("email", "bridge@test"),)]
