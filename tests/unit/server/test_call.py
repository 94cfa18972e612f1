"""Tests of bridge/server/call.py: what a call counts, and what its record says."""

import asyncio
import uuid

from bridge.core.errors import BridgeError, Code
from bridge.server.call import RpcCall
from bridge.server.time_limit import TimeLimit
from ollmbridge.v1 import error_details_pb2 as details_pb2
from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionResponse
from ollmbridge.v1.chat_pb2 import Usage
from tests.kit.waiting import WAIT_S
from tests.unit.server.fake_rpc import FakeRpc


def make_call(rpc: FakeRpc | None = None) -> RpcCall:
    return RpcCall(rpc or FakeRpc(b""), (), None)


async def test_request_id_is_the_callers_else_a_uuid_of_version_4():
    assert make_call(FakeRpc(b"", metadata=(("x-request-id", "mine"),))).request_id == "mine"
    made = uuid.UUID(make_call().request_id)
    assert (made.version, made.variant) == (4, uuid.RFC_4122)


async def test_first_of_several_values_of_the_metadata_counts():
    call = make_call(FakeRpc(b"", metadata=(("x-team", "a"), ("x-other", "o"), ("x-team", "b"))))
    assert call.metadata == {"x-team": "a", "x-other": "o"}


async def test_usage_of_a_reply_is_in_the_record():
    call = make_call()
    reply = CreateChatCompletionResponse(usage=Usage(prompt_tokens=3, completion_tokens=0))
    call.reply_usage = reply.usage
    await call.send_reply(reply, 0.5)
    record = call.to_record("OK")
    assert (record.prompt_tokens, record.completion_tokens) == (3, 0)
    assert (record.translation_s, record.response_bytes) == (0.5, reply.ByteSize())


async def test_call_without_a_reply_has_no_time_of_translation():
    call = make_call()
    assert call.to_record("OK").translation_s is None


async def test_translation_is_the_services_time_less_its_waits_for_the_upstream():
    call = make_call()
    call.upstream.waited_s = 0.4
    await call.send_reply(CreateChatCompletionResponse(), 0.5)
    assert round(call.to_record("OK").translation_s, 6) == 0.1


async def test_times_are_trailers_once_they_are_known():
    call = make_call()
    assert call.trailers() == [("x-request-id", call.request_id)]
    call.upstream.returned = [("x-request-id", "theirs")]
    call.upstream.sent_at, call.upstream.first_chunk_at, call.upstream.ended_at = 1.0, 1.25, 2.0
    times = [("ollmbridge-upstream-ms", "1000.0"), ("ollmbridge-first-chunk-ms", "250.0")]
    assert call.trailers() == [("x-request-id", "theirs"), *times]


async def test_only_a_fault_of_the_bridge_is_kept_for_the_log():
    cause = ValueError("why")
    for reason, fault in (
        (details_pb2.ERROR_REASON_BRIDGE_FAULT, cause),
        (details_pb2.ERROR_REASON_UPSTREAM_DISCONNECTED, None),
    ):
        error = BridgeError(Code.INTERNAL, reason, "m")
        error.__cause__ = cause
        assert make_call().to_record("INTERNAL", error).fault is fault


async def test_interruption_without_a_task_is_none():
    call = make_call()
    first, second = (BridgeError(Code.ABORTED, details_pb2.ERROR_REASON_DRAINING, text) for text in "ab")
    call.interruption = first
    call.interrupt(second)
    assert call.interruption is first


async def test_time_of_an_answer_begins_again_with_each_part_that_its_caller_takes():
    expired: list[RpcCall] = []

    class SteadyRpc(FakeRpc):
        """Its caller takes a part of the answer again and again, until another call's time is over."""

        async def send(self, message, on_progress=None):
            while not expired:
                on_progress()
                await asyncio.sleep(0)

    write_time = TimeLimit(0.05, expired.append)
    stalled = RpcCall(FakeRpc(b""), (), None, write_time)
    steady = RpcCall(SteadyRpc(b""), (), None, write_time)

    async def stall():
        stalled.rpc.writable.clear()
        await stalled.send_reply(CreateChatCompletionResponse(), 0.0)

    async with asyncio.timeout(WAIT_S):
        sending = asyncio.create_task(steady.send_reply(CreateChatCompletionResponse(), 0.0))
        stalling = asyncio.create_task(stall())
        await sending
    stalling.cancel()
    assert expired == [stalled]
    assert len(write_time) == 0
