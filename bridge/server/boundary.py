"""Around every RPC: who calls, whether it may, in what time, what came of it, and one record.

No way out may leave a caller without a status, or with a foreign exception's text. So a call ends in one of two ways.
Either it has a status: OK, or the one failure that everything that went wrong was turned into. Or its caller has ended
it: then CancelledError is raised, since nothing can be sent. Messages are bytes here, so that one that can't be decoded
is a failure like any other, and sizes are known. How bytes travel is the transport's business (`rpc.py`).
"""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError

from bridge.core.chat import requested_resource
from bridge.core.errors import Asked, BridgeError, Code
from bridge.core.headers import HeaderPolicy
from bridge.core.status import to_grpc_status
from bridge.server.admission import Admission
from bridge.server.call import RpcCall
from bridge.server.callers import Callers, collect_tags
from bridge.server.drain import Drain
from bridge.server.rpc import ClientDisconnectedError, RefusedByTransportError, Rpc
from bridge.server.service import ChatCompletionService
from bridge.settings import Settings
from bridge.telemetry import CallRecord, Observer
from ollmbridge.v1 import error_details_pb2 as details_pb2
from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionRequest

if TYPE_CHECKING:
    from bridge.telemetry.spans import Tracer

__all__ = ["Boundary"]

_TRACE_CONTEXT: Final = frozenset({"traceparent", "tracestate"})


class Boundary:
    """Handles the RPCs of the chat service. `drain` knows those in flight."""

    def __init__(
        self,
        service: ChatCompletionService,
        policy: HeaderPolicy,
        callers: Callers,
        settings: Settings,
        observers: Sequence[Observer] = (),
        tracer: "Tracer | None" = None,
    ) -> None:
        self._service = service
        self._policy = policy
        self._callers = callers
        self._settings = settings
        self._observers = observers
        self._tracer = tracer
        self._admission = Admission(settings)
        self.drain = Drain()

    async def handle(self, rpc: Rpc) -> None:
        """Run one RPC until its status is known. Raises CancelledError if the caller has ended it."""
        trace = self._tracer.start(rpc.method, rpc.metadata) if self._tracer is not None else None
        call = RpcCall(rpc, self._observers, trace)
        self._tell_start(rpc.method)
        try:
            failure = await self._run_to_its_end(call)
        except asyncio.CancelledError:
            code = Code.DEADLINE_EXCEEDED if rpc.has_expired() else Code.CANCELLED
            self._tell_end(call, call.to_record(code.name))
            raise
        except RefusedByTransportError as error:
            self._tell_end(call, call.to_record(Code.RESOURCE_EXHAUSTED.name))
            raise asyncio.CancelledError from error
        if failure is None:
            self._tell_end(call, call.to_record("OK"))
            rpc.end(0, "", call.trailers())
        else:
            self._tell_end(call, call.to_record(failure.code.name, failure))
            status = to_grpc_status(failure, request_id=call.request_id, forwarded=call.upstream.returned)
            rpc.end(status.code, status.message, status.trailers)

    async def _run_to_its_end(self, call: RpcCall) -> BridgeError | None:
        """Return the call's failure, None if it is OK. Raises CancelledError if its caller has ended it."""
        try:
            if self.drain.is_draining:
                await self.drain.refuse()
            self.drain.add(call)
            try:
                await self._run(call)
            finally:
                self.drain.remove(call)
        except asyncio.CancelledError as error:
            return _explain_cancellation(call, error)
        except ClientDisconnectedError as error:
            raise asyncio.CancelledError from error
        except BridgeError as error:
            return _with_progress(error, call)
        except (RefusedByTransportError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - a foreign panic too must end in a status
            return _internal_error(error)
        return None

    async def _run(self, call: RpcCall) -> None:
        """Run a call within its time: the transport ends it at the caller's deadline, else call_timeout_s does."""
        bucket = self._identify(call)
        self._prepare_headers(call)
        timer = None if call.rpc.has_deadline else self._start_timer(call)
        try:
            request = await _receive_request(call)
            call.upstream.asked = Asked(requested_resource(request), self._policy.own_key)
            await self._admission.enter(bucket)
            try:
                await self._serve(request, call)
            finally:
                self._admission.leave(bucket)
        finally:
            if timer is not None:
                timer.cancel()

    def _identify(self, call: RpcCall) -> str:
        """Find out who calls, and return what admission counts the call by."""
        caller = self._callers.identify(call.metadata, call.rpc.certificate, call.rpc.peer)
        call.caller = caller.name
        call.tags = collect_tags(self._settings.tags, call.metadata, caller)
        return caller.bucket

    def _prepare_headers(self, call: RpcCall) -> None:
        headers = self._policy.request_headers(call.rpc.metadata, request_id=call.request_id)
        if call.trace is not None:
            others = [header for header in headers if header[0] not in _TRACE_CONTEXT]
            headers = [*others, *call.trace.upstream_headers()]
        call.upstream.headers = headers

    def _start_timer(self, call: RpcCall) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(self._settings.call_timeout_s, self._time_out, call)

    def _time_out(self, call: RpcCall) -> None:
        message = f"the call exceeded call_timeout_s ({self._settings.call_timeout_s:g} s)"
        call.interrupt(BridgeError(Code.DEADLINE_EXCEEDED, details_pb2.ERROR_REASON_UPSTREAM_TIMEOUT, message))

    async def _serve(self, request: CreateChatCompletionRequest, call: RpcCall) -> None:
        if call.rpc.method == "StreamChatCompletion":
            async with contextlib.aclosing(self._service.StreamChatCompletion(request, call)) as chunks:
                await call.send_chunks(chunks)
        else:
            started_at = time.monotonic()
            reply = await self._service.CreateChatCompletion(request, call)
            await call.send_reply(reply, time.monotonic() - started_at)

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


async def _receive_request(call: RpcCall) -> CreateChatCompletionRequest:
    """Wait for the call's message."""
    data = await call.rpc.receive()
    if data is None:
        raise _undecodable("the end of the call")
    call.request_bytes = len(data)
    try:
        request = CreateChatCompletionRequest.FromString(data)
    except DecodeError as error:
        raise _undecodable("bytes that can't be decoded as one") from error
    call.model = request.model
    return request


def _undecodable(found: str) -> BridgeError:
    message = f"expected an ollmbridge.v1.CreateChatCompletionRequest, found {found}"
    return BridgeError(Code.INVALID_ARGUMENT, details_pb2.ERROR_REASON_UNDECODABLE_REQUEST, message)


def _explain_cancellation(call: RpcCall, error: asyncio.CancelledError) -> BridgeError:
    """Return the failure that a cancellation stands for. Raises it again if the caller has ended the call."""
    task = asyncio.current_task()
    if task is None or not task.cancelling():
        return _internal_error(error)  # another task's, leaked out of a library
    if call.interruption is not None and not task.uncancel():
        return _with_progress(call.interruption, call)
    raise error


def _with_progress(failure: BridgeError, call: RpcCall) -> BridgeError:
    """Add how far the stream had come, if what ended it did not know."""
    if failure.upstream is not None or not call.chunks:
        return failure
    return failure.with_progress(http_status=call.upstream.http_status or 0, chunks=call.chunks, usage=call.usage)


def _internal_error(error: BaseException) -> BridgeError:
    """Return the failure of a fault of our own. Its text stays here, since nobody has checked what it says."""
    message = f"internal error in the bridge ({type(error).__name__}); its log has more under this request id"
    failure = BridgeError(Code.INTERNAL, details_pb2.ERROR_REASON_BRIDGE_FAULT, message)
    failure.__cause__ = error
    return failure
