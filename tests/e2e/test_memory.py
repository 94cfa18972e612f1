"""The table "Memory" of docs/operations.md: attacks within what the settings allow stay within their sum."""

import asyncio
import contextlib

import grpc
import pytest

from bridge.server.grpc_aio import count_pending_max
from bridge.settings import Settings
from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionRequest
from ollmbridge.v1.chat_pb2 import ChatMessage
from tests.kit.bridges import SERVER_ENGINE, start_bridge_process
from tests.kit.client import chat, scenario
from tests.kit.hostile import connect
from tests.kit.http2 import (
    ACK,
    DATA,
    OPENING,
    PING,
    build_fields,
    encode_block,
    encode_call,
    encode_frame,
    encode_headers,
    encode_message,
)
from tests.kit.proc import HAS_PROC, read_peak_bytes
from tests.kit.waiting import WAIT_S, eventually

MIB = 1024 * 1024
LIMITS = {
    "calls_max": 200,
    "request_bytes_max": MIB,
    "receiving_bytes_max": 16 * MIB,
    "requests_bytes_max": 32 * MIB,
}
UNFINISHED = OPENING + b"".join(
    encode_headers(encode_block(build_fields()), stream)
    + encode_frame(DATA, 0, stream, encode_message(bytes(MIB - 100))[:16_000])
    for stream in range(1, 8, 2)
)
LARGE_CALLS = OPENING + b"".join(
    encode_call(encode_message(b"\xff"), *((b"x-%d" % at, b"x" * 4000) for at in range(7)), stream=number)
    for number in range(1, 200, 2)
)
"""As many calls as a connection may have, each with as much metadata as grpc's core takes."""
CONNECTIONS_LEFT = 100


def sum_up(settings: Settings) -> int:
    """Return what the settings can cost at most, in bytes, by the table; connections apart."""
    fixed = (90 + 16) * MIB
    messages = 2 * settings.receiving_bytes_max + 3 * settings.requests_bytes_max
    pending = count_pending_max(settings) if SERVER_ENGINE == "grpcio" else 0
    return fixed + 1024 * (64 * settings.calls_max + 80 * pending) + messages


async def send_lists_of_nothing(bridge, _emulator) -> None:
    request = CreateChatCompletionRequest(model="echo", messages=[ChatMessage()] * 500_000)
    answers = [bridge.ask(request, timeout=WAIT_S, compression=grpc.Compression.Gzip) for _ in range(20)]
    for answer in await asyncio.gather(*answers):
        assert answer.failure.reason in {"INVALID_REQUEST", "OVERLOADED"}


async def finish_no_message(bridge, _emulator) -> None:
    host, _, port = bridge.address.rpartition(":")
    async with contextlib.AsyncExitStack() as stack, asyncio.timeout(WAIT_S):
        for _ in range(25):
            reader, writer = await asyncio.open_connection(host, int(port))
            stack.callback(writer.close)
            writer.write(UNFINISHED + encode_frame(PING, 0, 0, b"finished"))
            await reader.readuntil(encode_frame(PING, ACK, 0, b"finished"))


async def hold_large_calls(bridge, emulator) -> None:
    """Calls of which the bridge holds as many as it has room for, and refuses the others."""
    large = scenario("stall?headers=0", messages=chat("x" * 1_000_000).messages)
    before = len(emulator.exchanges)
    calls = [asyncio.create_task(bridge.ask(large, timeout=10 * WAIT_S)) for _ in range(100)]
    await eventually(lambda: len(emulator.exchanges) - before + sum(call.done() for call in calls) == len(calls))
    refused = [call.result().failure.code for call in calls if call.done()]
    assert set(refused) == {"RESOURCE_EXHAUSTED"}
    assert len(refused) < len(calls)
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)


async def call_and_leave(bridge, _emulator) -> None:
    """Calls whose connections are closed as soon as they are sent, which grpc's core keeps until it hands them over."""
    loop = asyncio.get_running_loop()
    for _ in range(CONNECTIONS_LEFT):
        with contextlib.suppress(ConnectionError), contextlib.closing(await connect(bridge.address)) as connected:
            await loop.sock_sendall(connected, LARGE_CALLS)
            await loop.sock_recv(connected, MIB)  # since what is not read yet is lost with the connection


async def wait_for_service(bridge) -> None:
    """Repeat a call until it succeeds: grpc's core cancels calls while too many wait."""
    async with asyncio.timeout(WAIT_S):
        while (await bridge.ask(chat(), timeout=WAIT_S)).failure is not None:
            pass


@pytest.mark.skipif(not HAS_PROC, reason="memory is read from /proc")
async def test_attacks_stay_within_what_the_settings_can_cost(emulator):
    async with start_bridge_process(emulator, **LIMITS) as bridge:
        for attack in (send_lists_of_nothing, finish_no_message, hold_large_calls, call_and_leave):
            await attack(bridge, emulator)
        await wait_for_service(bridge)
        assert read_peak_bytes(bridge.process.pid) < sum_up(Settings(**LIMITS))
