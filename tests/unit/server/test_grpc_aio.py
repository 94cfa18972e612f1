"""Tests of bridge/server/grpc_aio.py: a stock client, a real server, and a service that does what it should not.

What the boundary makes of a service is tested without a network in test_boundary.py; here, that grpc.aio carries it.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from bridge.core.errors import BridgeError, Code
from bridge.core.headers import HeaderPolicy
from bridge.core.status import to_grpc_status
from bridge.server.admission import overload_error
from bridge.server.boundary import Boundary
from bridge.server.callers import Callers
from bridge.server.grpc_aio import create_handlers, is_loggable, list_options
from bridge.settings import Settings
from ollmbridge.v1 import error_details_pb2 as details_pb2
from tests.kit.client import Bridge, Records, build_deadline, chat
from tests.kit.waiting import WAIT_S
from tests.unit.server.fake_service import ENDS, SECRET, Service, fail_with, succeed

METHODS = pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])


@contextlib.asynccontextmanager
async def serve(
    service: Service, *, interceptors=(), options=(), shedding=None, **settings: Any
) -> AsyncIterator[Bridge]:
    records = Records()
    made = Settings(**settings)
    boundary = Boundary(service, HeaderPolicy(product="test/1"), Callers(made), made, [records])
    if shedding is not None:
        boundary.shedding = shedding
    server = grpc.aio.server(interceptors=interceptors, options=options)
    server.add_generic_rpc_handlers(create_handlers(boundary.list_rpc_methods(), is_secure=False))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield Bridge(address, channel, records)
    finally:
        await server.stop(0)


GRPCS_OWN = {
    "InternalError": grpc.aio.InternalError(SECRET),
    "UsageError": grpc.aio.UsageError(SECRET),
    "AbortError": grpc.aio.AbortError(SECRET),
}


@METHODS
@pytest.mark.parametrize("error", GRPCS_OWN.values(), ids=GRPCS_OWN)
async def test_error_of_grpcs_from_the_service_is_a_fault_like_any_other(error, stream):
    async with serve(Service(fail_with(error), chunks=1)) as bridge:
        answer = await bridge.ask(chat(), stream=stream, timeout=30)
        record = await bridge.records.next()
    assert (answer.failure.code, answer.failure.reason) == ("INTERNAL", "BRIDGE_FAULT")
    assert SECRET not in str(answer)
    assert (record.code, record.reason, record.fault) == ("INTERNAL", "BRIDGE_FAULT", error)


@METHODS
@pytest.mark.parametrize("code", Code, ids=lambda code: code.name)
async def test_status_of_each_code_reaches_the_caller(code, stream):
    error = BridgeError(code, details_pb2.ERROR_REASON_UPSTREAM_REFUSED, "the gateway refused")
    async with serve(Service(fail_with(error), chunks=2)) as bridge:
        answer = await bridge.ask(chat(), stream=stream, timeout=30)
    assert (answer.failure.code, answer.failure.reason) == (code.name, "UPSTREAM_REFUSED")
    assert answer.failure.message == "the gateway refused"
    assert len(answer.messages) == (2 if stream else 0)


async def test_upstream_headers_of_a_unary_call_are_trailers():
    async with serve(Service(succeed)) as bridge:
        answer = await bridge.ask(chat(), timeout=30)
    assert answer.reply.id == "whole"
    assert answer.trailers["x-request-id"] == "r-1"
    assert "x-request-id" not in answer.initial


async def test_upstream_headers_of_a_stream_are_initial_metadata():
    async with serve(Service(succeed, 2)) as bridge:
        answer = await bridge.ask(chat(), stream=True, timeout=30)
    assert len(answer.chunks) == 2
    assert answer.initial["x-request-id"] == "r-1"


async def test_upstream_headers_of_a_stream_without_chunks_are_trailers():
    async with serve(Service(succeed, 0)) as bridge:
        answer = await bridge.ask(chat(), stream=True, timeout=30)
    assert answer.chunks == []
    assert answer.trailers["x-request-id"] == "r-1"
    assert "x-request-id" not in answer.initial


class TrailerSetter(grpc.aio.ServerInterceptor):
    """Sets a trailer before the handler runs, as an interceptor of whoever embeds the bridge may."""

    async def intercept_service(self, continuation, details):
        handler = await continuation(details)
        inner = handler.stream_stream or handler.stream_unary

        async def run(messages, context):
            context.set_trailing_metadata((("x-set-before", "kept"),))
            return await inner(messages, context)

        make = grpc.stream_stream_rpc_method_handler if handler.stream_stream else grpc.stream_unary_rpc_method_handler
        return make(run)


@METHODS
@pytest.mark.parametrize("act", ENDS.values(), ids=ENDS)
async def test_trailers_set_before_are_kept(act, stream):
    async with serve(Service(act, chunks=1), interceptors=[TrailerSetter()]) as bridge:
        answer = await bridge.ask(chat(), stream=stream, timeout=30)
    assert answer.trailers["x-set-before"] == "kept"
    assert (answer.failure is None) or "grpc-status-details-bin" in answer.trailers


@METHODS
async def test_message_that_cannot_be_decoded_is_a_failure_like_any_other(stream):
    async with serve(Service(succeed)) as bridge:
        method = "StreamChatCompletion" if stream else "CreateChatCompletion"
        path = f"/ollmbridge.v1.ChatCompletionService/{method}"
        call = bridge.channel.unary_stream(path)(b"\xff\xff") if stream else bridge.channel.unary_unary(path)(b"\xff")
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert (await bridge.records.next()).reason == "UNDECODABLE_REQUEST"


@METHODS
async def test_call_without_a_message_is_undecodable(stream):
    async with serve(Service(succeed)) as bridge:
        method = "StreamChatCompletion" if stream else "CreateChatCompletion"
        path = f"/ollmbridge.v1.ChatCompletionService/{method}"
        call = bridge.channel.stream_stream(path)() if stream else bridge.channel.stream_unary(path)()
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT


@METHODS
async def test_message_that_the_core_refuses_is_recorded_as_refused(stream):
    async with serve(Service(succeed), options=[("grpc.max_receive_message_length", 1000)]) as bridge:
        answer = await bridge.ask(chat("x" * 2000), stream=stream, timeout=30)
        record = await bridge.records.next()
    assert answer.failure.code == record.code == "RESOURCE_EXHAUSTED"


class LateShedding:
    """Refuses each call, as if the loop were late."""

    def refuse(self, method, _arriving):
        return to_grpc_status(overload_error(f"no room for {method}"))

    def watch(self):
        raise AssertionError("the call was looked at")


@METHODS
async def test_call_that_is_shed_has_its_status_and_is_not_looked_at(stream):
    async with serve(Service(succeed), shedding=LateShedding()) as bridge:
        answer = await bridge.ask(chat(), stream=stream, timeout=30)
    failure = answer.failure
    method = "StreamChatCompletion" if stream else "CreateChatCompletion"
    assert (failure.code, failure.reason, failure.message) == (
        "RESOURCE_EXHAUSTED",
        "OVERLOADED",
        f"no room for {method}",
    )
    assert failure.details["RetryInfo"].retry_delay.ToMilliseconds() == 1000
    assert bridge.records.all == []


@METHODS
async def test_deadline_of_the_caller_is_recorded_as_such(stream):
    async with serve(Service(asyncio.Event().wait)) as bridge:
        await asyncio.wait_for(bridge.channel.channel_ready(), WAIT_S)
        answer = await bridge.ask(chat(), stream=stream, metadata=build_deadline(2))
        record = await bridge.records.next()
    assert (answer.failure.code, answer.failure.details) == ("DEADLINE_EXCEEDED", {})
    assert (record.code, record.reason) == ("DEADLINE_EXCEEDED", "")


def test_clients_that_ping_each_ten_seconds_are_let():
    options = dict(list_options(Settings(), reuse_port=False))
    assert options["grpc.http2.min_ping_interval_without_data_ms"] == 10_000
    assert options["grpc.keepalive_permit_without_calls"] == 1


@pytest.mark.parametrize(("calls_max", "pending_max"), [(1, 2000), (1000, 4000)])
def test_calls_that_wait_in_the_core_are_bounded_by_those_in_flight(calls_max, pending_max):
    options = dict(list_options(Settings(calls_max=calls_max), reuse_port=False))
    assert options["grpc.server.max_pending_requests_hard_limit"] == pending_max
    assert 0 < options["grpc.server.max_pending_requests"] < pending_max


def test_second_instance_on_the_port_is_refused_by_its_options():
    assert dict(list_options(Settings(), reuse_port=False))["grpc.so_reuseport"] == 0
    assert dict(list_options(Settings(), reuse_port=True))["grpc.so_reuseport"] == 1


def make_record(name: str, error: BaseException | None) -> logging.LogRecord:
    exc_info = (type(error), error, None) if error is not None else None
    return logging.LogRecord(name, logging.ERROR, "file", 1, "message", (), exc_info)


def test_log_leaves_out_what_grpc_says_of_callers():
    class ExecuteBatchError(Exception):
        pass

    assert not is_loggable(make_record("grpc._cython.cygrpc", ExecuteBatchError()))
    assert not is_loggable(make_record("grpc._cython.cygrpc", UnicodeDecodeError("utf-8", b"", 0, 1, "")))
    assert is_loggable(make_record("grpc._cython.cygrpc", ValueError()))
    assert is_loggable(make_record("grpc._cython.cygrpc", None))
    assert is_loggable(make_record("asyncio", ExecuteBatchError()))
