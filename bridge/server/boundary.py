"""Around every RPC: who calls, whether it may, in what time, what came of it, and one record.

A call ends with a status, OK or one failure, or because its caller has ended it (`outcome.py`). Messages are bytes
here, so that one that can't be decoded is a failure like any other, and sizes are known. How bytes travel is the
transport's business (`rpc.py`).
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError, Message

from bridge.core.errors import BridgeError, Code
from bridge.core.headers import HeaderPolicy, Metadata
from bridge.core.item_count import FIELDS_FEW, find_overfull_list, too_many_items_error
from bridge.core.status import GrpcStatus, to_grpc_status
from bridge.server.admission import Admission, overload_error
from bridge.server.call import RpcCall
from bridge.server.call_time import limit_time, limit_write_time
from bridge.server.callers import Callers, collect_tags, find_certificate_name, identity_tags
from bridge.server.drain import Drain
from bridge.server.heartbeat import read_period_s
from bridge.server.load import Load
from bridge.server.methods import Method, Service, list_methods
from bridge.server.outcome import run_to_its_end
from bridge.server.receiving import Receiving
from bridge.server.rpc import Caller, Certificate, RefusedByTransportError, Rpc, RpcMethod
from bridge.server.shedding import Shedding
from bridge.server.time_limit import TimeLimit
from bridge.server.turns import SMALL_BYTES_MAX, Turns
from bridge.settings import Settings
from bridge.telemetry import CallRecord, Observer
from ollmbridge.v1 import error_details_pb2 as details_pb2

if TYPE_CHECKING:
    from bridge.telemetry.spans import Tracer

__all__ = ["Boundary"]

_TRACE_CONTEXT: Final = frozenset({"traceparent", "tracestate"})


class Boundary:
    """Handles the RPCs of a service: `methods` by their names, which transports serve as `list_rpc_methods` says.

    `drain` knows the calls in flight, `receiving` the messages on their way, `load` what balancers are told.
    A transport asks `shedding` first whether to refuse a call before anything of it is looked at; then it may ask
    `identify` whether to refuse it before it runs.
    """

    def __init__(
        self,
        service: Service,
        policy: HeaderPolicy,
        callers: Callers,
        settings: Settings,
        observers: Sequence[Observer] = (),
        tracer: "Tracer | None" = None,
    ) -> None:
        self.descriptor = service.DESCRIPTOR
        self.methods = list_methods(service)
        self._policy = policy
        self._callers = callers
        self._settings = settings
        self._observers = observers
        self._tracer = tracer
        self._admission = Admission(settings)
        self.receiving = Receiving(settings)
        self._held_bytes = 0
        self._turns = Turns()
        self._time = self._limit_time("call_timeout_s")
        self._longest_time = self._limit_time("call_timeout_max_s")
        self._write_time = limit_write_time(settings)
        self.drain = Drain()
        self.shedding = Shedding(
            settings.lag_max_ms,
            lambda: self.drain.in_flight > 0,
            observers,
            is_full=lambda arriving: not self.drain.is_draining and self._admission.is_full(arriving),
            full_message=self._admission.full_message,
            has_too_many=self._admission.has_too_many,
            too_many_message=self._admission.too_many_message,
        )
        self.load = Load(settings, lambda: self.drain.in_flight, lambda: self.shedding.lag_s)

    @property
    def queued(self) -> int:
        """How many calls wait for a slot."""
        return self._admission.waiting

    def list_rpc_methods(self) -> list[RpcMethod]:
        """Return what a transport has to serve."""
        service, refuse = self.descriptor.full_name, self.shedding.refuse
        return [
            RpcMethod(service, name, not method.is_stream, self.handle, refuse, method.takes_many, self.identify)
            for name, method in self.methods.items()
        ]

    def identify(
        self, method: str, metadata: Metadata, certificate: Certificate, peer: str, arriving: Mapping[str, int]
    ) -> Caller | GrpcStatus | None:
        """Return who makes a call that has arrived, or its status if they have too many calls already.

        None if the call will be refused for another reason: `handle` finds it again, so that there is a record.
        """
        if self.drain.is_draining:
            return None
        try:
            caller = self._callers.identify(metadata, certificate, peer)
        except Exception:  # noqa: BLE001 - a fault of our own too must become a status
            return None
        status = self.shedding.refuse_caller(method, caller, arriving.get(caller.bucket, 0))
        return caller if status is None else status

    async def handle(self, rpc: Rpc) -> None:
        """Run one RPC until its status is known. Raises CancelledError if the caller has ended it."""
        trace = self._tracer.start(rpc.method, rpc.metadata) if self._tracer is not None else None
        call = RpcCall(rpc, self._observers, trace, self._write_time)
        self._tell_start(rpc.method)
        try:
            failure = await run_to_its_end(call, self._run_unless_draining(call))
        except asyncio.CancelledError:
            code = Code.DEADLINE_EXCEEDED if rpc.has_expired() else Code.CANCELLED
            self._tell_end(call, call.to_record(code.name))
            raise
        except RefusedByTransportError as error:
            self._tell_end(call, call.to_record(error.code))
            raise asyncio.CancelledError from error
        if failure is None:
            self._tell_end(call, call.to_record("OK"))
            rpc.end(0, "", [*call.trailers(), *self.load.trailers()])
        else:
            self._tell_end(call, call.to_record(failure.code.name, failure))
            status = to_grpc_status(
                failure,
                trailers=self.load.trailers(),
                request_id=call.request_id,
                forwarded=call.returned,
                secrets=self._policy.own_keys,
            )
            rpc.end(status.code, status.message, status.trailers)

    async def _run_unless_draining(self, call: RpcCall) -> None:
        if self.drain.is_draining:
            await self.drain.refuse()
        self.drain.add(call)
        self.load.add_call()
        self.shedding.watch()
        try:
            await self._run(call)
        finally:
            self.drain.remove(call)

    async def _run(self, call: RpcCall) -> None:
        """Run a call within its time: the transport ends it at the caller's deadline, the bridge at its own limit."""
        bucket = self._identify(call)
        self._prepare_headers(call)
        call.heartbeat_s = read_period_s(call.rpc.metadata, self._settings.heartbeat_s)
        time_limit = self._time if call.rpc.timeout_s is None else self._longest_time
        callers_s = math.inf if call.rpc.timeout_s is None else call.rpc.timeout_s
        call.upstream.deadline_at = time.monotonic() + min(callers_s, time_limit.limit_s)
        time_limit.start(call)
        try:
            await self._admission.enter(bucket, call.upstream.deadline_at)
            try:
                method = self.methods[call.rpc.method]
                request = await self._receive_request(call, method)
                await _serve(method, request, call)
            finally:
                self._admission.leave(bucket)
                self._held_bytes -= call.request_bytes
        finally:
            time_limit.stop(call)

    def _identify(self, call: RpcCall) -> str:
        """Find out who calls, and return what admission counts the call by."""
        rpc = call.rpc
        caller = rpc.caller
        if caller is None:
            call.caller = find_certificate_name(rpc.certificate)  # of a caller who is refused too
            caller = self._callers.identify(rpc.metadata, rpc.certificate, rpc.peer)
        call.caller = caller.name
        call.tags = collect_tags(self._settings.tags, call.metadata)
        call.identity_tags = identity_tags(self._settings.tags, caller)
        return caller.bucket

    def _prepare_headers(self, call: RpcCall) -> None:
        headers = self._policy.request_headers(call.rpc.metadata, request_id=call.request_id)
        if call.trace is not None:
            others = [header for header in headers if header[0] not in _TRACE_CONTEXT]
            headers = [*others, *call.trace.upstream_headers()]
        call.upstream.headers = headers

    async def _receive_request(self, call: RpcCall, method: Method) -> Message:
        """Wait for the call's message, and decode it."""
        data = await self.receiving.receive(call)
        if data is not None:
            self._hold(call, len(data))
            data = await call.rpc.decode(data)
        if data is None:
            raise _undecodable(method, "the end of the call")
        self._hold(call, len(data))
        if len(data) <= SMALL_BYTES_MAX:
            return _decode_request(method, data)
        async with self._turns:
            overfull = find_overfull_list(data, method.input_type, fields_max=FIELDS_FEW)
            if overfull is not None:
                overfull = await asyncio.to_thread(find_overfull_list, data, method.input_type)
            if overfull is not None:
                raise too_many_items_error(overfull)
            return _decode_request(method, data)

    def _hold(self, call: RpcCall, size: int) -> None:
        """Count the bytes of a call's message, in the form that it has now."""
        self._held_bytes += size - call.request_bytes
        call.request_bytes = size
        if self._held_bytes > self._settings.requests_bytes_max:
            limit = f"requests_bytes_max = {self._settings.requests_bytes_max}"
            raise overload_error(f"too many bytes in the messages of calls in flight ({limit})")

    def _limit_time(self, setting: str) -> TimeLimit[RpcCall]:
        limit_s = getattr(self._settings, setting)
        return limit_time(limit_s, f"the call exceeded {setting} ({limit_s:g} s)")

    def _tell_start(self, method: str) -> None:
        for observer in self._observers:
            with contextlib.suppress(Exception):  # a full disk is no reason to fail a call
                observer.start(method)

    def _tell_end(self, call: RpcCall, record: CallRecord) -> None:
        call.flush_gaps()
        for observer in self._observers:
            with contextlib.suppress(Exception):  # as above
                observer.end(record)
        if call.trace is not None:
            call.trace.end(record)


def _decode_request(method: Method, data: bytes) -> Message:
    try:
        return method.request.FromString(data)
    except DecodeError as error:
        raise _undecodable(method, "bytes that can't be decoded as one") from error


def _undecodable(method: Method, found: str) -> BridgeError:
    message = f"expected an {method.input_type.full_name}, found {found}"
    return BridgeError(Code.INVALID_ARGUMENT, details_pb2.ERROR_REASON_UNDECODABLE_REQUEST, message)


async def _serve(method: Method, request: Message, call: RpcCall) -> None:
    if method.is_stream:
        async with contextlib.aclosing(method.run(request, call)) as chunks:
            await call.send_chunks(chunks)
    else:
        started_at = time.monotonic()
        reply = await method.run(request, call)
        await call.send_reply(reply, time.monotonic() - started_at)
