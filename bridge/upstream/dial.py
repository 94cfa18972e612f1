"""How a connection to the gateway comes about: a Unix socket or DNS and TCP, a proxy before it, TLS over it.

Everything here happens before a byte of a request is sent, so each failure is a ConnectError. The time is the caller's
to bound. Errors name what failed, never the URL of the proxy, which may hold a password.
"""

import asyncio
import base64
import socket
import ssl
from collections.abc import Sequence
from typing import Final, NamedTuple
from urllib.parse import quote, unquote, urlsplit

import aiohappyeyeballs

from bridge.settings import SettingsError, UpstreamSettings
from bridge.upstream.causes import describe_cause
from bridge.upstream.exchange import ConnectError
from bridge.upstream.http1 import Connection
from bridge.upstream.tls import TlsContext

__all__ = ["Dialer"]

_HAPPY_EYEBALLS_DELAY_S: Final = 0.25
"""How long an address is tried before the next one is beside it (RFC 8305, 8)."""
_PROXY_HEAD_BYTES_MAX: Final = 16 * 1024
_PORTS: Final = {"http": 80, "https": 443}


class Dialer:
    """Connects to the URL that the settings and `url` name. Raises SettingsError from `__init__`.

    `request_lines` begin each request: its first line and the headers of the connection.
    """

    def __init__(self, settings: UpstreamSettings, url: str) -> None:
        target = _split(url)
        self._socket_path = settings.socket_path
        self._proxy = _split(settings.proxy) if settings.proxy is not None else None
        if self._proxy is not None and self._proxy.scheme not in _PORTS:
            raise SettingsError(
                "upstream.proxy: expected http:// or https:// (socks5:// needs upstream.engine = httpx)"
            )
        self._target = target
        self._is_encrypted = target.scheme == "https"
        self._tls = TlsContext(settings)
        self.request_lines = self._request_lines()

    async def connect(self, connection: Connection) -> None:
        """Attach a connection to a new transport. Raises ConnectError."""
        try:
            sock = await self._open_socket()
        except (OSError, UnicodeError) as error:
            raise ConnectError(describe_cause(error)) from error
        try:
            await self._carry(connection, sock)
        except BaseException as error:
            sock.close()
            if isinstance(error, OSError | EOFError | asyncio.LimitOverrunError):
                raise ConnectError(_describe_handshake(error)) from error
            raise

    def _request_lines(self) -> str:
        target, proxy = self._target, self._proxy
        host = "localhost" if self._socket_path else target.authority
        if proxy is None or self._is_encrypted:
            return f"POST {target.path} HTTP/1.1\r\nhost: {host}\r\n"
        return f"POST http://{host}{target.path} HTTP/1.1\r\nhost: {host}\r\n{_authorization(proxy)}"

    async def _open_socket(self) -> socket.socket:
        loop = asyncio.get_running_loop()
        if self._socket_path is not None:
            return await _connect_unix(loop, self._socket_path)
        peer = self._proxy or self._target
        found = await _resolve(loop, peer.host, peer.port)
        sock = await aiohappyeyeballs.start_connection(
            found, happy_eyeballs_delay=_HAPPY_EYEBALLS_DELAY_S, interleave=1, loop=loop
        )
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    async def _carry(self, connection: Connection, sock: socket.socket) -> None:
        """Make transports over a connected socket: to the proxy, through it, and TLS."""
        loop = asyncio.get_running_loop()
        proxy = self._proxy
        if not self._is_encrypted and (proxy is None or proxy.scheme == "http"):
            raw, _ = await loop.create_connection(lambda: connection, sock=sock)
            connection.attach(raw, raw, sock)
            return
        raw, _ = await loop.create_connection(asyncio.Protocol, sock=sock)
        connection.attach(raw, raw, sock)  # for what comes before TLS is known to stand
        transport = raw
        try:
            if proxy is not None and proxy.scheme == "https":
                context = ssl.create_default_context()
                protocol = connection if not self._is_encrypted else asyncio.Protocol()
                transport = await _start_tls(loop, transport, protocol, context, proxy.host)
            if self._is_encrypted:
                if proxy is not None:
                    await self._open_tunnel(transport, proxy)
                transport = await _start_tls(loop, transport, connection, self._tls.current(), self._target.host)
        except BaseException:
            raw.abort()
            raise
        connection.attach(transport, raw, sock)

    async def _open_tunnel(self, transport: asyncio.Transport, proxy: "_Address") -> None:
        """Ask a proxy for a tunnel. The gateway does not speak before TLS does, so nothing stands behind the answer."""
        reader = asyncio.StreamReader(limit=_PROXY_HEAD_BYTES_MAX)
        transport.set_protocol(asyncio.StreamReaderProtocol(reader))
        place = f"{self._target.bracketed}:{self._target.port}"
        transport.write(f"CONNECT {place} HTTP/1.1\r\nhost: {place}\r\n{_authorization(proxy)}\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        version, _, rest = head.partition(b" ")
        if version not in {b"HTTP/1.0", b"HTTP/1.1"} or not rest[:3].isdigit():
            raise ConnectError("the proxy's answer is not HTTP")
        if not rest.startswith(b"2"):
            raise ConnectError(f"the proxy refused the tunnel (HTTP {rest[:3].decode()})")


class _Address(NamedTuple):
    scheme: str
    host: str
    port: int
    path: str
    username: str
    password: str

    @property
    def bracketed(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def authority(self) -> str:
        return self.bracketed if self.port == _PORTS.get(self.scheme) else f"{self.bracketed}:{self.port}"


def _split(url: str) -> _Address:
    parts = urlsplit(url)
    host = parts.hostname or ""
    return _Address(
        scheme=parts.scheme,
        host=host if host.isascii() else host.encode("idna").decode(),
        port=parts.port or _PORTS.get(parts.scheme, 0),
        path=quote(parts.path or "/", safe="/%:@!$&'()*+,;=~"),
        username=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
    )


def _authorization(proxy: _Address) -> str:
    """Return the line that shows a proxy its user and password (RFC 7617), if the settings have them."""
    if not proxy.username:
        return ""
    credentials = base64.b64encode(f"{proxy.username}:{proxy.password}".encode()).decode()
    return f"proxy-authorization: Basic {credentials}\r\n"


async def _connect_unix(loop: asyncio.AbstractEventLoop, path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        await loop.sock_connect(sock, path)
    except BaseException:
        sock.close()
        raise
    return sock


async def _resolve(loop: asyncio.AbstractEventLoop, host: str, port: int) -> Sequence[aiohappyeyeballs.AddrInfoType]:
    """Look a host up; an address as a number costs no thread."""
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        return await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)


async def _start_tls(
    loop: asyncio.AbstractEventLoop,
    transport: asyncio.Transport,
    protocol: asyncio.BaseProtocol,
    context: ssl.SSLContext,
    host: str,
) -> asyncio.Transport:
    upgraded = await loop.start_tls(transport, protocol, context, server_hostname=host)
    if upgraded is None:
        raise ConnectError("the connection ended in the TLS handshake")
    return upgraded


def _describe_handshake(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return f"TLS: {describe_cause(error)}"
    if isinstance(error, asyncio.LimitOverrunError):
        return f"the head of the proxy's answer has more than {_PROXY_HEAD_BYTES_MAX} bytes"
    return describe_cause(error) if isinstance(error, OSError) else "the proxy ended the connection"
