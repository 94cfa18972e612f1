"""Health, reflection and reports of the load, under the same guard as calls.

That is a slot before a message is read, and a bound on both. Each method has slots of its own, as many as calls: a
probe is answered when the bridge is full of calls, or of streams that only their callers end. Checks give way to each
other (`probes.py`); the streams are bounded per caller and in all. Reflection is for those who may call; the others are
for everybody, since neither probes nor clients' own checks send a token. They are no calls: nothing is recorded of
them. Health's messages are grpcio-health-checking's (`health.py` says why no more is), reflection is
grpcio-reflection's. They are served over gRPC alone, where `Rpc.decode` has nothing to do.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, TypeVar, cast

from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from grpc_reflection.v1alpha import reflection, reflection_pb2

from bridge.core.errors import BridgeError, Code
from bridge.core.reasons import SERVICE_NAME
from bridge.core.status import to_grpc_status
from bridge.server import orca
from bridge.server.admission import Admission
from bridge.server.call import RpcCall
from bridge.server.call_time import limit_write_time
from bridge.server.callers import Callers, find_address
from bridge.server.health import Health
from bridge.server.load import Load, LoadStream
from bridge.server.outcome import run_to_its_end
from bridge.server.probes import Probes
from bridge.server.receiving import Receiving
from bridge.server.rpc import RefusedByTransportError, Rpc, RpcMethod
from bridge.settings import Settings
from ollmbridge.v1 import error_details_pb2 as details_pb2

__all__ = ["SideServices"]

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


class SideServices:
    """Serves health, and reflection if the settings have it. `methods` lists what there is to serve."""

    def __init__(
        self,
        settings: Settings,
        callers: Callers,
        receiving: Receiving,
        health: Health,
        load: Load,
    ) -> None:
        self._callers = callers
        self._receiving = receiving
        self._settings = settings
        self._probes = Probes(settings.calls_max)
        self._health = health
        self._write_time = limit_write_time(settings)
        served = [SERVICE_NAME, HEALTH, *([_REFLECTION] if settings.reflection else [])]
        self._reflection = reflection.aio.ReflectionServicer(served)
        self.methods = [
            RpcMethod(HEALTH, "Check", is_unary=True, handle=self._guard(self._check)),
            RpcMethod(HEALTH, "Watch", is_unary=False, handle=self._guard(self._admit(self._watch))),
        ]
        if "stream" in settings.load_reports:
            stream = self._guard(self._admit(LoadStream(load, receiving).run))
            self.methods.append(RpcMethod(orca.SERVICE, orca.METHOD, is_unary=False, handle=stream))
        if settings.reflection:
            reflect = self._guard(self._admit(self._reflect, must_identify=True))
            self.methods += [
                RpcMethod(name, "ServerReflectionInfo", is_unary=False, handle=reflect, takes_many=True)
                for name in (_REFLECTION, _REFLECTION_V1)
            ]

    def _guard(self, serve: _Serve) -> Callable[[Rpc], Awaitable[None]]:
        async def handle(rpc: Rpc) -> None:
            call = RpcCall(rpc, (), None, self._write_time)
            code = 0

            async def run() -> None:
                nonlocal code
                try:
                    await serve(call)
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

    def _admit(self, serve: _Serve, *, must_identify: bool = False) -> _Serve:
        """Return what serves a stream within slots that are its method's alone."""
        admission = Admission(self._settings)

        async def run(call: RpcCall) -> None:
            rpc = call.rpc
            bucket = find_address(rpc.peer)
            if must_identify:
                bucket = self._callers.identify(rpc.metadata, rpc.certificate, rpc.peer).bucket
            await admission.enter(bucket)
            try:
                await serve(call)
            finally:
                admission.leave(bucket)

        return run

    async def _check(self, call: RpcCall) -> None:
        with self._probes.hold(call):
            status = self._health.find_status(await self._receive_service(call))
            if status is None:
                raise _NoSuchServiceError
            await call.send(health_pb2.HealthCheckResponse(status=status).SerializeToString())

    async def _watch(self, call: RpcCall) -> None:
        service = await self._receive_service(call)
        status = None
        while True:
            status = await self._health.wait_for_status(service, status)
            await call.send(health_pb2.HealthCheckResponse(status=status).SerializeToString())

    async def _receive_service(self, call: RpcCall) -> str:
        request = await self._receive(call, health_pb2.HealthCheckRequest)
        return request.service if request is not None else ""

    async def _reflect(self, call: RpcCall) -> None:
        async def receive_all() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
            while (request := await self._receive(call, reflection_pb2.ServerReflectionRequest)) is not None:
                yield request

        answers = cast("AsyncIterator[Message]", self._reflection.ServerReflectionInfo(receive_all(), None))
        async for answer in answers:
            await call.send(answer.SerializeToString())

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
