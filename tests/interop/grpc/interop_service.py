"""grpc.testing.TestService, as far as methods that take one message go: what grpc-go's interop client calls.

The cases are described in https://github.com/grpc/grpc/blob/master/doc/interop-test-descriptions.md. Those that send a
stream of messages do not apply, since the bridge has no such method: client_streaming, ping_pong, empty_stream and
cancel_after_first_response. Nor do those for Google's credentials and for load balancing.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from bridge.server.call import RpcCall
from tests.interop.grpc import schema
from tests.interop.grpc.scripted import ScriptedRpc

_FILE = "testing.proto"
_ECHOED_HEADER = "x-grpc-test-echo-initial"
_ECHOED_TRAILER = "x-grpc-test-echo-trailing-bin"

Empty, SimpleResponse, StreamingInputCallResponse, StreamingOutputCallResponse = (
    schema.get_message(_FILE, name)
    for name in ("Empty", "SimpleResponse", "StreamingInputCallResponse", "StreamingOutputCallResponse")
)

CASES = {
    "empty_unary": ["OK"],
    "large_unary": ["OK"],
    "server_streaming": ["OK"],
    "timeout_on_sleeping_server": None,
    "cancel_after_begin": None,
    "status_code_and_message": ["ABORTED", "ABORTED"],
    "special_status_message": ["ABORTED"],
    "custom_metadata": ["OK", "OK"],
    "unimplemented_method": [],
    "unimplemented_service": [],
    "pick_first_unary": ["OK"] * 100,
    "rpc_soak": ["OK"] * 10,
    "channel_soak": ["OK"] * 10,
}
"""The client's cases, and the codes of the calls that the boundary records; None if a call may end before it comes."""


class TestService:
    """The servicer. `server_id` names the server to callers that ask for it."""

    __test__ = False  # for pytest
    DESCRIPTOR = schema.load(_FILE).services_by_name["TestService"]

    def __init__(self, server_id: str = "one") -> None:
        self._server_id = server_id

    async def EmptyCall(self, _request: Any, _call: RpcCall) -> Any:
        return Empty()

    async def UnaryCall(self, request: Any, call: RpcCall) -> Any:
        await _echo_metadata(call.rpc)
        _raise_for_status(request, call.rpc)
        reply = SimpleResponse(server_id=self._server_id if request.fill_server_id else "")
        reply.payload.body = bytes(request.response_size)
        return reply

    async def StreamingOutputCall(self, request: Any, call: RpcCall) -> AsyncIterator[Any]:
        await _echo_metadata(call.rpc)
        for wanted in request.response_parameters:
            await asyncio.sleep(wanted.interval_us / 1e6)
            reply = StreamingOutputCallResponse()
            reply.payload.body = bytes(wanted.size)
            yield reply
        _raise_for_status(request, call.rpc)

    async def StreamingInputCall(self, request: Any, _call: RpcCall) -> Any:
        return StreamingInputCallResponse(aggregated_payload_size=len(request.payload.body))

    async def FullDuplexCall(self, request: Any, call: RpcCall) -> AsyncIterator[Any]:
        """Answer like StreamingOutputCall, but sleep if nothing is asked for: the caller may send more."""
        async for reply in self.StreamingOutputCall(request, call):
            yield reply
        if not request.response_parameters:
            await asyncio.Event().wait()


async def _echo_metadata(rpc: ScriptedRpc) -> None:
    sent = dict(rpc.metadata)
    if _ECHOED_HEADER in sent:
        await rpc.send_headers([(_ECHOED_HEADER, sent[_ECHOED_HEADER])])
    if _ECHOED_TRAILER in sent:
        rpc.trailers.append((_ECHOED_TRAILER, sent[_ECHOED_TRAILER]))


def _raise_for_status(request: Any, rpc: ScriptedRpc) -> None:
    if request.response_status.code:
        raise rpc.make_failure(request.response_status.code, request.response_status.message)
