"""Tests of bridge/server/boundary.py: real servers around a service that does what it should not."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest

from bridge.core.errors import BridgeError, Code
from bridge.core.headers import HeaderPolicy
from bridge.server.boundary import Boundary
from bridge.server.callers import Callers
from bridge.settings import Settings
from bridge.telemetry import Observer
from ollmbridge.v1 import error_details_pb2 as details_pb2
from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionResponse, StreamChatCompletionResponse
from tests.conftest import Bridge, Records, chat

SECRET = "sk-secret0123456789"
METHODS = pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])


class Service:
    """Does `act` in both methods; a stream gives `chunks` chunks first."""

    def __init__(self, act: Callable[[], Any], chunks: int = 0) -> None:
        self.act = act
        self.chunks = chunks

    async def CreateChatCompletion(self, _request, call):
        call.returned = [("x-request-id", "r-1")]
        await self.act()
        return CreateChatCompletionResponse(id="done")

    async def StreamChatCompletion(self, _request, call, write):
        call.returned = [("x-request-id", "r-1")]
        for _ in range(self.chunks):
            await write(StreamChatCompletionResponse(id="chunk"))
        await self.act()


def raising(error: BaseException) -> Callable[[], Any]:
    async def act() -> None:
        raise error

    return act


@contextlib.asynccontextmanager
async def served(service: Service, *, observers=(), interceptors=(), **settings: Any) -> AsyncIterator[Bridge]:
    records = Records()
    boundary = Boundary(
        service, HeaderPolicy(product="test/1"), Callers(made := Settings(**settings)), made, [*observers, records]
    )
    server = grpc.aio.server(interceptors=interceptors)
    server.add_generic_rpc_handlers((boundary.handler(),))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield Bridge(address, channel, records)
    finally:
        await server.stop(0)


class PanicError(BaseException):
    """A foreign panic, such as a Rust extension raises."""


FAULTS = {
    "ValueError": ValueError(SECRET),
    "KeyError": KeyError(SECRET),
    "BaseException": PanicError(SECRET),
    "leaked CancelledError": asyncio.CancelledError(SECRET),
    "TimeoutError of another": TimeoutError(SECRET),
    "grpc.aio.InternalError": grpc.aio.InternalError(SECRET),
    "grpc.aio.UsageError": grpc.aio.UsageError(SECRET),
    "grpc.aio.AbortError": grpc.aio.AbortError(SECRET),
    "GeneratorExit": GeneratorExit(SECRET),
    "StopAsyncIteration": StopAsyncIteration(SECRET),
    "ExceptionGroup": ExceptionGroup(SECRET, [ValueError(SECRET)]),
}


@METHODS
@pytest.mark.parametrize("error", FAULTS.values(), ids=FAULTS)
async def test_fault_becomes_a_status_without_its_text(error, stream):
    async with served(Service(raising(error), chunks=1)) as bridge:
        answer = await bridge.ask(chat(), stream=stream, timeout=5)
        record = await bridge.records.next()
    assert (answer.failed.code, answer.failed.reason) == ("INTERNAL", "BRIDGE_FAULT")
    assert answer.failed.info.domain == "ollmbridge"
    assert SECRET not in str(answer)
    assert (record.code, record.reason, record.fault) == ("INTERNAL", "BRIDGE_FAULT", error)


@METHODS
@pytest.mark.parametrize("code", Code, ids=lambda code: code.name)
async def test_bridge_error_of_each_code_becomes_its_status(code, stream):
    error = BridgeError(code, details_pb2.ERROR_REASON_UPSTREAM_REFUSED, "expected this, found that")
    async with served(Service(raising(error))) as bridge:
        answer = await bridge.ask(chat(), stream=stream, timeout=5)
    assert (answer.failed.code, answer.failed.reason) == (code.name, "UPSTREAM_REFUSED")
    assert answer.failed.message == "expected this, found that"


@METHODS
async def test_failure_still_comes_with_its_request_id_and_the_upstream_headers(stream):
    error = BridgeError(
        Code.RESOURCE_EXHAUSTED, details_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED, "no", retry_after_ms=1500
    )
    async with served(Service(raising(error), chunks=2)) as bridge:
        answer = await bridge.ask(chat(), stream=stream, metadata=(("x-request-id", "mine"),), timeout=5)
    assert answer.failed.details["RequestInfo"].request_id == "mine"
    assert answer.trailers["x-request-id"] == "r-1"
    assert answer.trailers["grpc-retry-pushback-ms"] == "1500"
    assert len(answer.messages) == (2 if stream else 0)


class TrailerSetter(grpc.aio.ServerInterceptor):
    """Sets a trailer before the handler runs, as an operator's own interceptor may."""

    async def intercept_service(self, continuation, details):
        handler = await continuation(details)
        inner = handler.stream_stream or handler.stream_unary

        async def run(messages, context):
            context.set_trailing_metadata((("x-set-before", "kept"),))
            return await inner(messages, context)

        make = grpc.stream_stream_rpc_method_handler if handler.stream_stream else grpc.stream_unary_rpc_method_handler
        return make(run)


async def fine() -> None:
    pass


ENDS = {
    "ok": fine,
    "error": raising(BridgeError(Code.ABORTED, details_pb2.ERROR_REASON_UPSTREAM_CONFLICT, "no")),
    "fault": raising(ValueError(SECRET)),
}


@METHODS
@pytest.mark.parametrize("act", ENDS.values(), ids=ENDS)
async def test_trailers_set_before_are_merged(act, stream):
    async with served(Service(act, chunks=1), interceptors=[TrailerSetter()]) as bridge:
        answer = await bridge.ask(chat(), stream=stream, timeout=5)
    assert answer.trailers["x-set-before"] == "kept"
    assert (answer.failure is None) or "grpc-status-details-bin" in answer.trailers


class Rude(Observer):
    """An observer that fails."""

    def start(self, _method):
        raise OSError("the disk is full")

    def add_chunks(self, _method, _gaps_s):
        raise OSError("the disk is full")

    def end(self, _record):
        raise OSError("the disk is full")


@METHODS
@pytest.mark.parametrize("act", ENDS.values(), ids=ENDS)
async def test_observer_that_raises_does_no_harm(act, stream):
    async with served(Service(act, chunks=200), observers=[Rude()]) as bridge:
        answer = await bridge.ask(chat(), stream=stream, timeout=5)
        record = await bridge.records.next()
    assert (answer.failure.code if answer.failure else "OK") == record.code


class Counting(Observer):
    """An observer that counts the chunks that it was told of before the call's end."""

    def __init__(self) -> None:
        self.told = 0
        self.told_at_end: int | None = None

    def add_chunks(self, method, gaps_s):
        assert method == "StreamChatCompletion"
        assert all(gap_s >= 0 for gap_s in gaps_s)
        self.told += len(gaps_s)

    def end(self, _record):
        self.told_at_end = self.told


@pytest.mark.parametrize("chunks", [0, 1, 2, 64, 65, 66, 200])
@pytest.mark.parametrize("act", ENDS.values(), ids=ENDS)
async def test_observers_are_told_of_each_chunk_after_the_first_before_the_end(act, chunks):
    counting = Counting()
    async with served(Service(act, chunks=chunks), observers=[counting]) as bridge:
        await bridge.ask(chat(), stream=True, timeout=5)
        await bridge.records.next()
    assert counting.told_at_end == max(0, chunks - 1)


@METHODS
async def test_message_that_cannot_be_decoded_is_an_error_like_any_other(stream):
    async with served(Service(fine)) as bridge:
        method = "StreamChatCompletion" if stream else "CreateChatCompletion"
        path = f"/ollmbridge.v1.ChatCompletionService/{method}"
        call = bridge.channel.unary_stream(path)(b"\xff\xff") if stream else bridge.channel.unary_unary(path)(b"\xff")
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert (await bridge.records.next()).reason == "UNDECODABLE_REQUEST"


async def test_stream_without_chunks_that_ends_well_still_has_its_initial_metadata():
    async with served(Service(fine)) as bridge:
        answer = await bridge.ask(chat(), stream=True, timeout=5)
    assert answer.chunks == []
    assert answer.initial["x-request-id"] == "r-1"


@METHODS
async def test_call_timeout_bounds_only_calls_without_a_deadline(stream):
    async with served(Service(asyncio.Event().wait), call_timeout_s=0.1) as bridge:
        without = await bridge.ask(chat(), stream=stream)
        within = await bridge.ask(chat(), stream=stream, timeout=0.3)
        records = [await bridge.records.next() for _ in range(2)]
    assert (without.failed.code, without.failed.reason) == ("DEADLINE_EXCEEDED", "UPSTREAM_TIMEOUT")
    assert (within.failed.code, within.failed.details) == ("DEADLINE_EXCEEDED", {})
    assert [(record.code, record.reason) for record in records] == [
        ("DEADLINE_EXCEEDED", "UPSTREAM_TIMEOUT"),
        ("DEADLINE_EXCEEDED", ""),
    ]
    assert records[1].duration_s > 0.25


@METHODS
async def test_record_of_a_call_bounds_and_redacts_what_the_caller_chose(stream):
    metadata = (("x-request-id", "Bearer " + "y" * 1000),)
    async with served(Service(fine)) as bridge:
        await bridge.ask(chat(model=SECRET + "x" * 100_000), stream=stream, metadata=metadata)
        record = await bridge.records.next()
    assert record.model == "sk-[redacted]"
    assert record.request_id == "Bearer [redacted]"


@METHODS
async def test_limit_of_calls_counts_only_those_in_flight(stream):
    started, release = asyncio.Event(), asyncio.Event()

    async def act() -> None:
        started.set()
        await release.wait()

    async with served(Service(act), calls_max=1) as bridge:
        first = asyncio.create_task(bridge.ask(chat(), stream=stream))
        await started.wait()
        refused = await bridge.ask(chat(), stream=stream)
        release.set()
        assert (await first).failure is None
        assert (await bridge.ask(chat(), stream=stream)).failure is None
    assert (refused.failed.code, refused.failed.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    assert refused.failed.details["RetryInfo"].retry_delay.ToMilliseconds() == 1000
    assert refused.failed.trailers["grpc-retry-pushback-ms"] == "1000"


@METHODS
async def test_key_in_metadata_that_is_refused_is_not_logged(stream):
    async with served(Service(fine)) as bridge:
        answer = await bridge.ask(chat(), stream=stream, metadata=[("authorization", f"Bearer {SECRET}")] * 2)
        record = await bridge.records.next()
    assert answer.failed.reason == record.reason == "INVALID_METADATA"
    assert SECRET not in f"{answer}{record}"
