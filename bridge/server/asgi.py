"""The calls as an ASGI application: Connect, gRPC-Web, and gRPC if the HTTP server sends trailers.

A request is a call of the boundary's, in a task of its own, which is cancelled when the caller has left or its deadline
has passed. Which protocol a request speaks, its content type says; what that means in bytes is a wire's business
(`protocols/wire.py`). A body is read once the boundary asks for it, so after the call was admitted, and no further than
a message may be large. CORS is asked first, and the boundary's shedding before anything of a call is looked at.
"""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import structlog
from google.protobuf.message_factory import GetMessageClass

from bridge.core.redact import redact_and_truncate
from bridge.core.status import GrpcStatus
from bridge.http_server.shell import Message, Receive, Send
from bridge.server.asgi_rpc import TRAILERS, AsgiRpc, send_answer, to_refusal
from bridge.server.boundary import Boundary
from bridge.server.cors import Cors
from bridge.server.protocols.connect import ConnectStreamWire, ConnectUnaryWire
from bridge.server.protocols.framing import MessageError
from bridge.server.protocols.grpc import Header
from bridge.server.protocols.grpc_web import GrpcWebTextWire, GrpcWebWire, GrpcWire
from bridge.server.protocols.wire import Answer, Status, Types, Wire
from bridge.server.turns import Turns
from bridge.settings import Settings

__all__ = ["AsgiApplication"]

_LOG_REFUSALS_S: Final = 60.0
_ORIGIN_CHARS_MAX: Final = 100
_GRPC: Final = frozenset({b"application/grpc", b"application/grpc+proto"})
_LOG: Final = structlog.get_logger("ollm_bridge")


class _Method(NamedTuple):
    """A method, and how its messages are written in each content type that it takes."""

    name: str
    is_stream: bool
    wires: Mapping[bytes, Callable[[], Wire]]


class AsgiApplication:
    """Serves the methods of a boundary's service."""

    def __init__(self, boundary: Boundary, settings: Settings) -> None:
        self._boundary = boundary
        self._settings = settings
        self._turns = Turns()
        self._cors = Cors(settings.web_allowed_origins)
        self._log_again_at = 0.0
        self._methods = {
            f"/{boundary.descriptor.full_name}/{name}": _Method(name, method.is_stream, self._list_wires(name))
            for name, method in boundary.methods.items()
        }

    def _list_wires(self, name: str) -> Mapping[bytes, Callable[[], Wire]]:
        descriptor = self._boundary.descriptor.methods_by_name[name]
        types = Types(GetMessageClass(descriptor.input_type), GetMessageClass(descriptor.output_type))
        encodings, bytes_max = self._settings.connections.encodings, self._settings.request_bytes_max
        make = functools.partial
        connect: Callable[..., Wire]
        if descriptor.server_streaming:
            connect, prefix = ConnectStreamWire, b"application/connect+"
        else:
            connect, prefix = ConnectUnaryWire, b"application/"
        web, text = make(GrpcWebWire, encodings, bytes_max), make(GrpcWebTextWire, encodings, bytes_max)
        native = make(GrpcWire, encodings, bytes_max)
        return {
            prefix + b"json": make(connect, types, encodings, bytes_max, is_json=True),
            prefix + b"proto": make(connect, types, encodings, bytes_max, is_json=False),
            b"application/grpc-web": web,
            b"application/grpc-web+proto": web,
            b"application/grpc-web-text": text,
            b"application/grpc-web-text+proto": text,
            b"application/grpc": native,
            b"application/grpc+proto": native,
        }

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http":
            await self._answer(scope, receive, send)
        elif scope["type"] == "lifespan":
            for _ in range(2):
                await send({"type": f"{(await receive())['type']}.complete"})
        else:
            await send({"type": "websocket.close"})

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        origin = headers.get(b"origin")
        if origin is not None:
            if not self._cors.is_allowed(origin):
                self._log_refusal(origin)
                text = "pages of this origin may not call this bridge; web_allowed_origins lists those that may\n"
                await send_answer(send, _make_text(403, text))
                return
            send = self._expose(send, origin)
        method = self._methods.get(scope["path"])
        if scope["method"] == "OPTIONS" and origin is not None and b"access-control-request-method" in headers:
            asked = headers.get(b"access-control-request-headers", b"")
            await send_answer(send, Answer(204, self._cors.answer_preflight(origin, asked), b""))
        elif method is None:
            await send_answer(send, _make_text(404, f"not found; the paths are {', '.join(self._methods)}\n"))
        elif scope["method"] != "POST":
            await send_answer(send, _make_text(405, "only POST is allowed\n", (b"allow", b"POST")))
        else:
            kinds = _list_kinds(method, scope)
            make_wire = kinds.get(_read_kind(headers.get(b"content-type", b"")))
            if make_wire is not None:
                await self._run(method, make_wire(), scope, receive, send)
                return
            accepted = b", ".join(kinds)
            text = f"the content type must be one of {accepted.decode()}\n"
            await send_answer(send, _make_text(415, text, (b"accept-post", accepted)))

    def _log_refusal(self, origin: bytes) -> None:
        """Log a refused origin, which may be the page of somebody who waits for it, or of anybody: once a minute."""
        now = time.monotonic()
        if now >= self._log_again_at:
            self._log_again_at = now + _LOG_REFUSALS_S
            text = redact_and_truncate(origin.decode("latin-1"), _ORIGIN_CHARS_MAX)
            _LOG.warning("a web page may not call: its origin is not in web_allowed_origins", origin=text)

    def _expose(self, send: Send, origin: bytes) -> Send:
        """Return `send` for a request from an allowed origin."""

        async def send_exposed(event: Message) -> None:
            if event["type"] == "http.response.start" and event["status"] != 204:
                event["headers"] += self._cors.expose(origin, event["headers"])
            await send(event)

        return send_exposed

    async def _run(self, method: _Method, wire: Wire, scope: Message, receive: Receive, send: Send) -> None:
        status = self._boundary.shedding.refuse(method.name)
        if status is not None:
            await send_answer(send, wire.encode_answer((), None, _to_status(status)))
            return
        try:
            wire.read_head(scope["headers"])
        except MessageError as error:
            await send_answer(send, wire.encode_answer([wire.accepted], None, to_refusal(error)))
            return
        rpc = AsgiRpc(method.name, wire, scope, receive, send, self._turns, is_unary=not method.is_stream)
        await rpc.run(self._boundary.handle(rpc), self._settings)


def _make_text(http_status: int, text: str, *headers: Header) -> Answer:
    kind = (b"content-type", b"text/plain; charset=utf-8")
    return Answer(http_status, [kind, (b"x-content-type-options", b"nosniff"), *headers], text.encode())


def _list_kinds(method: _Method, scope: Message) -> Mapping[bytes, Callable[[], Wire]]:
    """Return the content types that a method takes from this server: without trailers, gRPC is none of them."""
    if TRAILERS in (scope.get("extensions") or {}):
        return method.wires
    return {kind: make for kind, make in method.wires.items() if kind not in _GRPC}


def _read_kind(content_type: bytes) -> bytes:
    """Return the media type; JSON's charset may be named, if it is UTF-8."""
    kind, _, parameters = content_type.partition(b";")
    is_utf8 = parameters.strip().lower().replace(b'"', b"") in {b"", b"charset=utf-8"}
    return kind.strip().lower() if is_utf8 else content_type


def _to_status(status: GrpcStatus) -> Status:
    return Status(status.code, status.message, status.trailers)
