"""Tests of bridge/http_server/shell.py: handshakes. How it serves: tests/unit/admin/test_connection.py."""

import asyncio
import contextlib

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from bridge.http_server.shell import serve_http
from bridge.tcp import listen_tcp
from tests.kit.certificates import server_context
from tests.kit.waiting import WAIT_S


async def test_handshake_that_does_not_come_ends_the_connection():
    sockets = listen_tcp("127.0.0.1", 0)
    where = sockets[0].getsockname()
    async with serve_http(refuse_all, sockets, HttpToolsProtocol, tls=server_context(), handshake_s=0.1):
        for begin in (b"", b"\x16\x03\x01"):
            reader, writer = await asyncio.open_connection(*where)
            writer.write(begin)
            async with asyncio.timeout(WAIT_S):
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
            writer.close()


async def refuse_all(_scope, _receive, _send):
    raise AssertionError
