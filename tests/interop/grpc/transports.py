"""The engines of the call port and the web port, each as a server around any boundary."""

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import grpc

from bridge.server.boundary import Boundary
from bridge.server.grpc_aio import create_handlers, list_options
from bridge.server.listeners import bind
from bridge.server.native.engine import Engine
from bridge.server.web import serve_web
from bridge.settings import Settings

Transport = Callable[[Boundary, Settings], AbstractAsyncContextManager[str]]


@contextlib.asynccontextmanager
async def serve_grpcio(boundary: Boundary, settings: Settings) -> AsyncIterator[str]:
    """Serve with grpc.aio while the block lasts, and yield the address."""
    server = grpc.aio.server(options=list_options(settings, reuse_port=False))
    server.add_generic_rpc_handlers(
        create_handlers(boundary.list_rpc_methods(), is_secure=settings.tls.cert_file is not None)
    )
    address = bind(server, settings)
    await server.start()
    try:
        yield address
    finally:
        await server.stop(0)


@contextlib.asynccontextmanager
async def serve_native(boundary: Boundary, settings: Settings) -> AsyncIterator[str]:
    """Serve with the native engine while the block lasts, and yield the address."""
    engine = Engine(settings, boundary.list_rpc_methods())
    await engine.start()
    try:
        yield engine.address
    finally:
        await engine.stop()


TRANSPORTS: dict[str, Transport] = {"grpcio": serve_grpcio, "native": serve_native}

WEB: dict[str, Transport] = {"web": serve_web}
"""The web port, which has no gRPC."""
