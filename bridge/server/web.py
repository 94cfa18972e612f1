"""The web port: the calls for browsers, curl and whoever speaks Connect or gRPC-Web, over HTTP/1.1.

It serves what the call port serves, by the same boundary, and stands on uvicorn. Its address is bound before anything
is served, so that every fault is reported at the start.
"""

import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterator

from bridge.http_server.shell import serve_http
from bridge.server.asgi import AsgiApplication
from bridge.server.boundary import Boundary
from bridge.server.exposure import check_exposure
from bridge.server.handshakes import HANDSHAKE_S, Handshakes
from bridge.server.listeners import address_error
from bridge.server.tls_context import open_context
from bridge.server.web_connection import list_limits, make_connection_class
from bridge.settings import Settings, split_address
from bridge.tcp import listen_tcp

__all__ = ["bind_web", "prepare_web", "serve_web"]


@contextlib.asynccontextmanager
async def serve_web(
    boundary: Boundary, settings: Settings, *, reuse_port: bool = False, handshakes: Handshakes | None = None
) -> AsyncIterator[str]:
    """Serve the web port while the block lasts, and yield its address with its port. Raises SettingsError."""
    connection = make_connection_class(list_limits(settings.connections))
    with prepare_web(settings, handshakes) as tls, bind_web(settings, reuse_port=reuse_port) as (address, sockets):
        application = AsgiApplication(boundary, settings)
        async with serve_http(application, sockets, connection, tls=tls, handshake_s=HANDSHAKE_S):
            yield address


@contextlib.contextmanager
def prepare_web(settings: Settings, handshakes: Handshakes | None = None) -> Iterator[ssl.SSLContext | None]:
    """Yield the TLS, if callers need it, for a while. Raises SettingsError if the port is not to be served so."""
    check_exposure(settings, "web_listen")
    if settings.tls.cert_file is None:
        yield None
        return
    with open_context(settings.tls, alpn=["http/1.1"], handshakes=handshakes) as tls:
        yield tls


@contextlib.contextmanager
def bind_web(settings: Settings, *, reuse_port: bool = False) -> Iterator[tuple[str, list[socket.socket]]]:
    """Listen while the block lasts, and yield the address with its port, and the sockets; none if the port is off.

    Raises SettingsError.
    """
    listen = settings.web_listen
    if not listen:
        yield "", []
        return
    host, port = split_address(listen)
    try:
        sockets = listen_tcp(host, port, reuse_port=reuse_port)
    except OSError as error:
        raise address_error("web_listen", listen, error.strerror or error) from None
    with contextlib.ExitStack() as stack:
        for each in sockets:
            stack.enter_context(each)
        yield f"{host}:{sockets[0].getsockname()[1]}", sockets
