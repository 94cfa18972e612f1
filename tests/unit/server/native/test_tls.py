"""Tests of bridge/server/native/tls.py, over real connections with TLS."""

import asyncio
import ssl

import pytest

from bridge.server.certificate import list_identities
from tests.kit import http2
from tests.kit.certificates import Certificates
from tests.unit.server.native.serving import ONE, serve


@pytest.fixture
def certificates(tmp_path):
    return Certificates(tmp_path)


async def call(address: str, context: ssl.SSLContext) -> bytes:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname="localhost")
    writer.write(http2.OPENING + http2.encode_call(http2.encode_message(b"hello"), path=ONE))
    answer = b""
    while http2.parse_grpc_status(answer) is None and (more := await reader.read(10_000)):
        answer += more
    writer.close()
    return answer


def make_client(certificates: Certificates, *alpn: str, name: str = "") -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=certificates.root.decode())
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if name:
        certificates.authority.issue_cert(name).configure_cert(context)
    return context


async def test_caller_who_speaks_http2_is_served(certificates):
    async with serve(tls=certificates.settings) as served:
        answer = await call(served.address, make_client(certificates, "h2"))
        assert http2.parse_grpc_status(answer) == 0
        assert b"hello" in answer


@pytest.mark.parametrize("alpn", [(), ("http/1.1",)])
async def test_caller_who_does_not_agree_to_http2_is_closed(certificates, alpn):
    async with serve(tls=certificates.settings) as served:
        try:
            answer = await call(served.address, make_client(certificates, *alpn))
        except (ssl.SSLError, ConnectionError):
            answer = b""
        assert answer == b""


async def test_certificate_is_whole_and_in_the_form_that_grpc_has(certificates):
    found = []

    async def handle(rpc) -> None:
        found.extend(list_identities(pem) for pem in rpc.certificate["x509_pem_cert"])
        rpc.end(0, "", ())

    settings = certificates.settings | {"client_ca_file": certificates.ca_file}
    async with serve(handle, tls=settings) as served:
        await call(served.address, make_client(certificates, "h2", name="team-a.example"))
    assert found == [("team-a.example",)]
