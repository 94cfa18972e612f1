"""Health, reflection and reports of the load, under the same guard as calls.

That is a slot before a message is read, and a bound on both. They have slots of their own, as many as calls, so that
probes are answered when the bridge is full. Reflection is for those who may call; the others are for everybody, since
neither probes nor clients' own checks send a token. They are no calls: nothing is recorded of them. Health and
reflection are grpcio-health-checking's and grpcio-reflection's. They are served over gRPC alone, where `Rpc.decode` has
nothing to do.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, NoReturn, TypeVar, cast

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from bridge.core.errors import BridgeError, Code
from bridge.core.reasons import SERVICE_NAME
from bridge.core.status import to_grpc_status
from bridge.server import orca
from bridge.server.admission import Admission
from bridge.server.call import RpcCall
from bridge.server.callers import Callers, find_address
from bridge.server.load import Load, LoadStream
from bridge.server.outcome import run_to_its_end
from bridge.server.receiving import Receiving
from bridge.server.rpc import RefusedByTransportError, Rpc, RpcMethod
from bridge.settings import Settings
from ollmbridge.v1 import error_details_pb2 as details_pb2

__all__ = ["SideServices"]

_HEALTH: Final = health.SERVICE_NAME
_REFLECTION: Final = reflection.SERVICE_NAME
_REFLECTION_V1: Final = "grpc.reflection.v1.ServerReflection"
"""The same messages under another name, which grpcio-reflection does not have yet."""
_MESSAGE_BYTES_MAX: Final = 4096
"""Of a request: the name of a service, a file or a symbol."""
_NOT_FOUND: Final = 5

_Serve = Callable[[RpcCall], Awaitable[None]]
_RequestT = TypeVar("_RequestT", bound=Message)


class _NoSuchServiceError(Exception):
    pass


class _HealthContext:
    """What grpcio-health-checking's servicer uses of a call's context."""

    def __init__(self, call: RpcCall) -> None:
        self._call = call

    async def write(self, answer: health_pb2.HealthCheckResponse) -> None:
        await self._call.rpc.send(answer.SerializeToString())

    async def abort(self, _code: grpc.StatusCode) -> NoReturn:
        raise _NoSuchServiceError


class SideServices:
    """Serves health, and reflection if the settings have it. `methods` lists what there is to serve."""

    def __init__(
        self,
        settings: Settings,
        callers: Callers,
        receiving: Receiving,
        servicer: health.aio.HealthServicer,
        load: Load,
    ) -> None:
        self._callers = callers
        self._receiving = receiving
        self._admission = Admission(settings)
        self._health = servicer
        served = [SERVICE_NAME, _HEALTH, *([_REFLECTION] if settings.reflection else [])]
        self._reflection = reflection.aio.ReflectionServicer(served)
        self.methods = [
            RpcMethod(_HEALTH, "Check", is_unary=True, handle=self._guard(self._check)),
            RpcMethod(_HEALTH, "Watch", is_unary=False, handle=self._guard(self._watch)),
        ]
        if "stream" in settings.load_reports:
            stream = self._guard(LoadStream(load, receiving).run)
            self.methods.append(RpcMethod(orca.SERVICE, orca.METHOD, is_unary=False, handle=stream))
        if settings.reflection:
            reflect = self._guard(self._reflect, must_identify=True)
            self.methods += [
                RpcMethod(name, "ServerReflectionInfo", is_unary=False, handle=reflect, takes_many=True)
                for name in (_REFLECTION, _REFLECTION_V1)
            ]

    def _guard(self, serve: _Serve, *, must_identify: bool = False) -> Callable[[Rpc], Awaitable[None]]:
        async def handle(rpc: Rpc) -> None:
            call = RpcCall(rpc, (), None)
            code = 0

            async def run() -> None:
                nonlocal code
                try:
                    await self._admit(call, serve, must_identify=must_identify)
                except _NoSuchServiceError:
                    code = _NOT_FOUND

            try:
                failure = await run_to_its_end(call, run())
            except RefusedByTransportError as error:
                raise asyncio.CancelledError from error
            if failure is None:
                rpc.end(code, "", ())
            else:
                status = to_grpc_status(failure, request_id=call.request_id)
                rpc.end(status.code, status.message, status.trailers)

        return handle

    async def _admit(self, call: RpcCall, serve: _Serve, *, must_identify: bool) -> None:
        rpc = call.rpc
        bucket = find_address(rpc.peer)
        if must_identify:
            caller = self._callers.identify(rpc.metadata, rpc.certificate, rpc.peer)
            bucket = caller.bucket
        await self._admission.enter(bucket)
        try:
            await serve(call)
        finally:
            self._admission.leave(bucket)

    async def _check(self, call: RpcCall) -> None:
        request = await self._receive(call, health_pb2.HealthCheckRequest)
        answer = await self._health.Check(request or health_pb2.HealthCheckRequest(), cast("Any", _HealthContext(call)))
        await call.rpc.send(answer.SerializeToString())

    async def _watch(self, call: RpcCall) -> None:
        request = await self._receive(call, health_pb2.HealthCheckRequest)
        await self._health.Watch(request or health_pb2.HealthCheckRequest(), cast("Any", _HealthContext(call)))

    async def _reflect(self, call: RpcCall) -> None:
        async def receive_all() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
            while (request := await self._receive(call, reflection_pb2.ServerReflectionRequest)) is not None:
                yield request

        answers = cast("AsyncIterator[Message]", self._reflection.ServerReflectionInfo(receive_all(), None))
        async for answer in answers:
            await call.rpc.send(answer.SerializeToString())

    async def _receive(self, call: RpcCall, kind: type[_RequestT]) -> _RequestT | None:
        data = await self._receiving.receive(call)
        if data is None:
            return None
        try:
            if len(data) <= _MESSAGE_BYTES_MAX:
                return kind.FromString(data)
            found = f"{len(data)} bytes"
        except DecodeError:
            found = "bytes that can't be decoded as one"
        message = f"expected a {kind.DESCRIPTOR.full_name} of at most {_MESSAGE_BYTES_MAX} bytes, found {found}"
        raise BridgeError(Code.INVALID_ARGUMENT, details_pb2.ERROR_REASON_UNDECODABLE_REQUEST, message)
