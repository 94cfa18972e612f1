"""connectrpc.conformance.v1.ConformanceService, as far as methods that take one message go.

A request says what the reply is to be, and the service does so; what it saw of the request is in its first message, or
else in the details of its status. https://github.com/connectrpc/conformance, docs/testing_servers.md, has the rules.
"""

import asyncio
import base64
from collections.abc import AsyncIterator, Iterable
from typing import Any

from google.protobuf import any_pb2

from bridge.core.errors import BridgeError
from bridge.core.headers import Metadata
from bridge.server.call import RpcCall
from tests.interop.grpc import schema
from tests.interop.grpc.scripted import ScriptedRpc

_FILE = "conformance.proto"

UnaryResponse, ServerStreamResponse, RequestPayload = (
    schema.get_message(_FILE, name) for name in ("UnaryResponse", "ServerStreamResponse", "ConformancePayload")
)


class ConformanceService:
    """The servicer."""

    DESCRIPTOR = schema.load(_FILE).services_by_name["ConformanceService"]

    async def Unary(self, request: Any, call: RpcCall) -> Any:
        wanted = request.response_definition
        await _send_metadata(wanted, call.rpc)
        await asyncio.sleep(wanted.response_delay_ms / 1000)
        if wanted.HasField("error"):
            raise _make_failure(wanted.error, call.rpc, request)
        return UnaryResponse(payload=_describe(request, call.rpc, wanted.response_data))

    async def ServerStream(self, request: Any, call: RpcCall) -> AsyncIterator[Any]:
        wanted = request.response_definition
        await _send_metadata(wanted, call.rpc)
        for number, data in enumerate(wanted.response_data):
            await asyncio.sleep(wanted.response_delay_ms / 1000)
            payload = RequestPayload(data=data) if number else _describe(request, call.rpc, data)
            yield ServerStreamResponse(payload=payload)
        if wanted.HasField("error"):
            raise _make_failure(wanted.error, call.rpc, None if wanted.response_data else request)


async def _send_metadata(wanted: Any, rpc: ScriptedRpc) -> None:
    """Send the initial metadata, if there is some, and leave the trailers for the end."""
    rpc.trailers += _read_headers(wanted.response_trailers)
    if headers := _read_headers(wanted.response_headers):
        await rpc.send_headers(headers)


def _make_failure(error: Any, rpc: ScriptedRpc, request: Any | None) -> BridgeError:
    """Return an error to raise. If nothing was sent before it, its details say what the service saw of the request."""
    seen = [_pack(_describe(request, rpc).request_info)] if request is not None else []
    return rpc.make_failure(error.code, error.message, [*error.details, *seen])


def _describe(request: Any, rpc: ScriptedRpc, data: bytes = b"") -> Any:
    """Return a payload that says what the service saw of a request."""
    payload = RequestPayload(data=data)
    payload.request_info.requests.append(_pack(request))
    if rpc.timeout_s is not None:
        payload.request_info.timeout_ms = int(rpc.timeout_s * 1000)
    for name, values in _write_headers(rpc.metadata).items():
        payload.request_info.request_headers.add(name=name, value=values)
    return payload


def _pack(message: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


# A `-bin` value is bytes in metadata, and base64 in a Header.


def _read_headers(headers: Iterable[Any]) -> list[tuple[str, str | bytes]]:
    return [(each.name.lower(), _from_text(each.name.lower(), value)) for each in headers for value in each.value]


def _from_text(name: str, value: str) -> str | bytes:
    return base64.b64decode(value + "=" * (-len(value) % 4)) if name.endswith("-bin") else value


def _write_headers(metadata: Metadata) -> dict[str, list[str]]:
    values: dict[str, list[str]] = {}
    for name, value in metadata:
        text = base64.b64encode(value).decode().rstrip("=") if isinstance(value, bytes) else value
        values.setdefault(name, []).append(text)
    return values
