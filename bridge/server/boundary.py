"""Around every RPC: admission, the call's time, one error boundary and one CallRecord.

No way out of a handler may leave a caller without a status, with a foreign exception's text, or without a trailer that
was set. So a handler ends in one of three ways: it returns; it aborts with a chosen status; or it was itself cancelled,
which is re-raised, since the call is over and nothing can be sent. What grpc.aio does with anything else is not for
callers: a BaseException sends no status at all, an Exception's text goes out as it is, a lost trailer turns OK into
INTERNAL.

Handlers take and give bytes: so a message that can't be decoded is an error like any other, and sizes are known.
"""

import asyncio
import contextlib
import gc
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, TypeAlias, cast

import grpc
from google.protobuf.message import DecodeError

from bridge.core.errors import BridgeError, Code, redacted, rendered
from bridge.core.headers import HeaderPolicy, Metadata
from bridge.core.reasons import SERVICE_NAME
from bridge.server.admission import Admission
from bridge.server.callers import Callers, tags_of
from bridge.server.service import ChatCompletionService
from bridge.settings import Settings
from bridge.telemetry import CallRecord, Observer, Trace, Tracing, trace_id_of
from bridge.upstream.call import UpstreamCall
from ollmbridge.v1 import error_details_pb2 as details_pb2
from ollmbridge.v1.chat_completion_service_pb2 import (
    CreateChatCompletionRequest,
    StreamChatCompletionResponse,
)

__all__ = ["Boundary"]

Context: TypeAlias = grpc.aio.ServicerContext[bytes, bytes]
Run: TypeAlias = Callable[[CreateChatCompletionRequest, "_Ongoing"], Awaitable[bytes | None]]

_DEADLINE_SLACK_S: Final = 0.01
"""How much before the deadline, by our clock, grpc's core may already have ended the call."""
_TRACE_CONTEXT: Final = frozenset({"traceparent", "tracestate"})
_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
_UNCOLLECTED_BYTES_MAX: Final = 32 * 1024 * 1024
"""Of requests and their metadata, seen since garbage was last collected."""
_RECORD_CHARS_MAX: Final = 200
"""Of a text that the caller chose, in a CallRecord."""


_GAPS_MAX: Final = 64
"""Chunks whose observers are told of them together: being told is dearer than what they do."""
_OVER: Final = grpc.aio.InternalError
"""What grpc.aio makes of an operation on a call that is over."""


class _LeftError(Exception):
    """A message could not be given to the caller, who has left."""


@dataclass(eq=False, slots=True)
class _Ongoing:
    """One RPC while it goes on. Peer, metadata and deadline are taken at its start: after its end they can't be had."""

    method: str
    context: Context
    metadata: Metadata
    peer: str
    started_at: float
    deadline_at: float | None
    request_id: str
    call: UpstreamCall
    observers: Sequence[Observer]
    trace: Trace | None = None
    caller: str = ""
    model: str = ""
    last_chunk_at: float = 0.0
    gaps_s: list[float] = field(default_factory=list)
    request_bytes: int = 0
    response_bytes: int = 0

    async def begin(self) -> None:
        """Send the initial metadata: with the first message and not before, since a client may retry until it comes."""
        if self.call.returned:
            try:
                await self.context.send_initial_metadata(tuple(self.call.returned))
            except _OVER as error:
                raise _LeftError from error

    async def write(self, chunk: StreamChatCompletionResponse) -> None:
        """Give a chunk to the caller; wait while flow control holds it back."""
        now = time.monotonic()
        if self.call.first_chunk_at is None:
            self.call.first_chunk_at = now
            if self.trace is not None:
                self.trace.first_chunk()
            await self.begin()
        else:
            self.gaps_s.append(now - self.last_chunk_at)
            if len(self.gaps_s) >= _GAPS_MAX:
                self.tell_chunks()
        self.last_chunk_at = now
        data = chunk.SerializeToString()
        try:
            await self.context.write(data)
        except _OVER as error:
            raise _LeftError from error
        self.response_bytes += len(data)

    def tell_chunks(self) -> None:
        """Tell the observers of the chunks that they have not been told of."""
        gaps_s, self.gaps_s = self.gaps_s, []
        if gaps_s:
            _tell(self.observers, lambda observer: observer.chunks(self.method, gaps_s))


class Boundary:
    """The chat service's RPC handlers, and how many of their calls go on."""

    def __init__(
        self,
        service: ChatCompletionService,
        policy: HeaderPolicy,
        callers: Callers,
        settings: Settings,
        observers: Sequence[Observer] = (),
        tracing: Tracing | None = None,
    ) -> None:
        self._service = service
        self._policy = policy
        self._callers = callers
        self._settings = settings
        self._observers = observers
        self._tracing = tracing
        self._admission = Admission(settings)
        self._secured = settings.tls.cert_file is not None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False
        self._ending = False
        self._refusing = asyncio.Event()
        self._refusing.set()
        self._uncollected_bytes = 0

    def handler(self) -> grpc.GenericRpcHandler:
        """Give what a server routes the service's calls by.

        Where a method takes one message, grpc.aio itself awaits it, without a limit, and asks no handler where it never
        comes. So the handlers are those of methods that take a stream, and await the message themselves.
        """
        methods: dict[str, Any] = {
            "CreateChatCompletion": grpc.stream_unary_rpc_method_handler(self._create),
            "StreamChatCompletion": grpc.stream_stream_rpc_method_handler(self._stream),
        }
        return grpc.method_handlers_generic_handler(SERVICE_NAME, methods)

    async def drain(self, grace_s: float) -> None:
        """Refuse new calls, let those in flight finish for `grace_s`, then end the rest with a status."""
        self._draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        self._ending = True
        for task in self._tasks:
            task.cancel()
        await self._idle.wait()

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """While the block lasts, leave the calls that come during a drain without their refusal."""
        self._refusing.clear()
        try:
            yield
        finally:
            self._refusing.set()

    async def _create(self, _messages: object, context: Context) -> bytes | None:
        async def run(request: CreateChatCompletionRequest, ongoing: _Ongoing) -> bytes:
            reply = await self._service.CreateChatCompletion(request, ongoing.call)
            answer = reply.SerializeToString()
            await ongoing.begin()
            ongoing.response_bytes = len(answer)
            return answer

        try:
            return await self._guarded("CreateChatCompletion", context, run)
        except grpc.aio.AbortError as error:
            del _messages, context  # grpc keeps the error with the call, and the error its frames: all that they hold
            raise error.with_traceback(None) from None

    async def _stream(self, _messages: object, context: Context) -> None:
        async def run(request: CreateChatCompletionRequest, ongoing: _Ongoing) -> None:
            await self._service.StreamChatCompletion(request, ongoing.call, ongoing.write)
            if ongoing.call.first_chunk_at is None:
                await ongoing.begin()

        try:
            await self._guarded("StreamChatCompletion", context, run)
        except grpc.aio.AbortError as error:
            del _messages, context  # as above
            raise error.with_traceback(None) from None

    def _begun(self, method: str, context: Context) -> _Ongoing:
        now = time.monotonic()
        left_s = cast("float | None", context.time_remaining())
        metadata = cast("Metadata", context.invocation_metadata() or ())
        given = dict(metadata).get("x-request-id", "")
        _tell(self._observers, lambda observer: observer.began(method))
        return _Ongoing(
            method=method,
            context=context,
            metadata=metadata,
            peer=context.peer(),
            started_at=now,
            deadline_at=None if left_s is None else now + left_s,
            request_id=str(given) or str(uuid.uuid4()),
            call=UpstreamCall(headers=[]),
            observers=self._observers,
            trace=self._tracing.start(method, metadata) if self._tracing is not None else None,
        )

    async def _guarded(self, method: str, context: Context, run: Run) -> bytes | None:
        ongoing = self._begun(method, context)
        try:
            if self._draining:
                await self._refuse()
            serving = self._entered()
            try:
                result = await self._run(ongoing, run)
            finally:
                self._gone(serving)
            context.set_trailing_metadata((*(context.trailing_metadata() or ()), *_timings(ongoing.call)))
        except asyncio.CancelledError as error:
            if (task := asyncio.current_task()) is None or not task.cancelling():
                failure = _fault(error)  # somebody else's, leaked out of a library
            elif self._ending:
                task.uncancel()
                failure = _drained(ongoing.call)
            else:
                self._observe(ongoing, _left(ongoing))
                raise
        except _LeftError as error:
            self._observe(ongoing, _left(ongoing))
            raise asyncio.CancelledError from error
        except BridgeError as error:
            failure = error
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - a foreign panic too must end in a status
            failure = _fault(error)
        else:
            self._observe(ongoing, "OK")
            return result
        try:
            _tell_progress(ongoing.call, failure)
            self._observe(ongoing, failure.code.name, failure)
            await _aborted(ongoing, failure)
        finally:
            del failure, ongoing  # the failure's stack holds this frame, which holds the failure: a circle
        return None

    async def _refuse(self) -> NoReturn:
        """Refuse a call that came during the drain, as soon as refusals are let out."""
        await self._refusing.wait()
        message = "expected calls before the shutdown, found one during it"
        raise BridgeError(Code.UNAVAILABLE, details_pb2.ERROR_REASON_DRAINING, message)

    def _entered(self) -> asyncio.Task[Any]:
        """Keep the call's task where `drain` finds it."""
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._tasks.add(task)
        self._idle.clear()
        return task

    def _gone(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not self._tasks:
            self._idle.set()

    def _collect(self, seen_bytes: int) -> None:
        """Collect garbage by bytes: grpc.aio leaves a circle a call that holds its metadata, few objects but large."""
        self._uncollected_bytes += seen_bytes
        if self._uncollected_bytes > _UNCOLLECTED_BYTES_MAX:
            self._uncollected_bytes = 0
            gc.collect()

    async def _run(self, ongoing: _Ongoing, run: Run) -> bytes | None:
        """Run a call within its time: grpc itself ends it at the caller's deadline, else call_timeout_s does."""
        metadata = ongoing.metadata
        self._collect(sum(len(name) + len(value) for name, value in metadata))
        certificate = ongoing.context.auth_context() if self._secured else {}
        caller = self._callers.identify(metadata, certificate, ongoing.peer)
        ongoing.caller = caller.name
        ongoing.call.headers = self._policy.request(metadata, request_id=ongoing.request_id)
        if ongoing.trace is not None:
            others = [header for header in ongoing.call.headers if header[0] not in _TRACE_CONTEXT]
            ongoing.call.headers = [*others, *ongoing.trace.headers()]
        ongoing.call.tags = tags_of(self._settings.tags, metadata, caller)
        limit_s = self._settings.call_timeout_s if ongoing.deadline_at is None else None
        timer = asyncio.timeout(limit_s)
        try:
            async with timer:
                request = await self._received(ongoing)
                await self._admission.enter(caller.bucket)
                try:
                    return await run(request, ongoing)
                finally:
                    self._admission.leave(caller.bucket)
        except TimeoutError as error:
            if not timer.expired():
                raise
            message = f"expected a call without a deadline to end within {limit_s:g} s, found it going on"
            raise BridgeError(Code.DEADLINE_EXCEEDED, details_pb2.ERROR_REASON_UPSTREAM_TIMEOUT, message) from error

    async def _received(self, ongoing: _Ongoing) -> CreateChatCompletionRequest:
        """Await the call's message."""
        data: Any = await ongoing.context.read()
        if data is grpc.aio.EOF:
            raise _undecodable("the end of the call")
        ongoing.request_bytes = len(data)
        self._collect(len(data))
        try:
            request = CreateChatCompletionRequest.FromString(data)
        except DecodeError as error:
            raise _undecodable("bytes that are none") from error
        ongoing.model = request.model
        return request

    def _observe(self, ongoing: _Ongoing, code: str, failure: BridgeError | None = None) -> None:
        ongoing.tell_chunks()
        call = ongoing.call
        usage = call.usage
        record = CallRecord(
            method=ongoing.method,
            code=code,
            reason=failure.reason_name if failure else "",
            model=redacted(ongoing.model[:_RECORD_CHARS_MAX]),
            request_id=redacted(ongoing.request_id[:_RECORD_CHARS_MAX]),
            peer=ongoing.peer,
            duration_s=time.monotonic() - ongoing.started_at,
            upstream_status=call.http_status,
            upstream_s=_between(call.sent_at, call.ended_at),
            first_chunk_s=_between(call.sent_at, call.first_chunk_at),
            chunks=call.chunks,
            prompt_tokens=usage.prompt_tokens if usage and usage.HasField("prompt_tokens") else None,
            completion_tokens=usage.completion_tokens if usage and usage.HasField("completion_tokens") else None,
            request_bytes=ongoing.request_bytes,
            response_bytes=ongoing.response_bytes,
            streamed=ongoing.method == "StreamChatCompletion",
            translation_s=call.translation_s,
            trace_id=ongoing.trace.trace_id if ongoing.trace is not None else trace_id_of(ongoing.metadata),
            caller=redacted(ongoing.caller[:_RECORD_CHARS_MAX]),
            fault=failure.__cause__ if failure and failure.reason == details_pb2.ERROR_REASON_BRIDGE_FAULT else None,
        )
        _tell(self._observers, lambda observer: observer.ended(record))
        if ongoing.trace is not None:
            ongoing.trace.end(record)


def _tell(observers: Sequence[Observer], what: Callable[[Observer], None]) -> None:
    for observer in observers:
        with contextlib.suppress(Exception):  # a full disk is no reason to fail a call
            what(observer)


async def _aborted(ongoing: _Ongoing, failure: BridgeError) -> None:
    """End the call with the failure's status. Raises what grpc.aio takes for it."""
    context = ongoing.context
    own = cast("Metadata", context.trailing_metadata() or ())
    status = rendered(failure, request_id=ongoing.request_id, trailers=own, forwarded=ongoing.call.returned)
    try:
        await context.abort(_CODES[status.code], status.message, status.trailers)
    except (grpc.aio.InternalError, grpc.aio.UsageError) as error:  # the caller has left meanwhile
        raise asyncio.CancelledError from error


def _undecodable(found: str) -> BridgeError:
    message = f"expected an ollmbridge.v1.CreateChatCompletionRequest, found {found}"
    return BridgeError(Code.INVALID_ARGUMENT, details_pb2.ERROR_REASON_UNDECODABLE_REQUEST, message)


def _left(ongoing: _Ongoing) -> str:
    """Give the code of a call that its caller ended."""
    late = ongoing.deadline_at is not None and time.monotonic() >= ongoing.deadline_at - _DEADLINE_SLACK_S
    return Code.DEADLINE_EXCEEDED.name if late else Code.CANCELLED.name


def _drained(call: UpstreamCall) -> BridgeError:
    code = Code.UNAVAILABLE if call.sent_at is None else Code.ABORTED
    message = "expected the call to end before the shutdown's grace did, found it going on"
    return BridgeError(code, details_pb2.ERROR_REASON_DRAINING, message)


def _tell_progress(call: UpstreamCall, failure: BridgeError) -> None:
    """Say how far a stream had come, where what ended it did not know."""
    if failure.upstream is None and call.chunks:
        failure.upstream = details_pb2.UpstreamError(http_status=call.http_status or 0, chunks_delivered=call.chunks)
        if call.usage is not None:
            failure.upstream.partial_usage.CopyFrom(call.usage)


def _fault(error: BaseException) -> BridgeError:
    """Give the error of a fault of our own; its text stays here, since nobody has checked what it says."""
    message = f"expected no fault of the bridge, found {type(error).__name__}; the log has more"
    failure = BridgeError(Code.INTERNAL, details_pb2.ERROR_REASON_BRIDGE_FAULT, message)
    failure.__cause__ = error
    return failure


def _timings(call: UpstreamCall) -> list[tuple[str, str]]:
    times = (
        ("ollmbridge-upstream-ms", _between(call.sent_at, call.ended_at)),
        ("ollmbridge-first-chunk-ms", _between(call.sent_at, call.first_chunk_at)),
    )
    return [(name, f"{seconds * 1000:.1f}") for name, seconds in times if seconds is not None]


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else end - start
