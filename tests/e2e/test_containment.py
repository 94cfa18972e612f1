"""Hostile clients, over raw sockets, against a bridge in a process of its own: what our own code makes of them.

The attacks on the HTTP/2 server below it are lab/torture/attacks.py. `Target` has what must hold after each attack. All
tests meet one process; if an attack kills it, the next test starts another.
"""

import asyncio
import contextlib
import gzip
import signal
from collections import Counter
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio

from bridge.emulator import Emulator
from tests.kit.bridges import SERVER_ENGINE, start_bridge_process
from tests.kit.client import Bridge, chat, scenario
from tests.kit.health import answer_good_call
from tests.kit.hostile import MIB, Target, hold_connections, send_what_fits, start_target
from tests.kit.http2 import (
    DATA,
    END_STREAM,
    GOAWAY,
    HEADERS,
    OPENING,
    PREFACE,
    RST_STREAM,
    SERVICE,
    UNACKNOWLEDGED,
    WINDOW_UPDATE,
    build_fields,
    encode_block,
    encode_call,
    encode_frame,
    encode_headers,
    encode_message,
    encode_opening,
    exchange_bytes,
    find_goaway,
    parse_grpc_status,
)
from tests.kit.waiting import WAIT_S, eventually
from tests.kit.windows import wait_for_backpressure

pytestmark = pytest.mark.asyncio(loop_scope="module")

REQUEST = chat().SerializeToString()
MESSAGE = encode_message(REQUEST)
STREAM = SERVICE + b"StreamChatCompletion"
BLOCK = encode_block(build_fields())
HEAD = encode_headers(BLOCK)
GZIP = (b"grpc-encoding", b"gzip")
INVALID_ARGUMENT, RESOURCE_EXHAUSTED, UNIMPLEMENTED = 3, 8, 12
IS_NATIVE = SERVER_ENGINE == "native"
CALM = "GOAWAY 11"
"""How the native engine ends a connection that costs more than a refusal (ENHANCE_YOUR_CALM)."""


def read_outcome(answer: bytes) -> int | str | None:
    """Return the status of a connection's first call, else the code of its GOAWAY."""
    status, goaway = parse_grpc_status(answer), find_goaway(answer)
    return status if status is not None or not goaway else f"GOAWAY {goaway}"


def parametrize_cases(table: dict) -> pytest.MarkDecorator:
    """Run the test with each case of the table."""
    return pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in table.items()])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def emulator() -> AsyncIterator[Emulator]:
    async with Emulator() as emulator:
        yield emulator


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def _targets() -> AsyncIterator[tuple[contextlib.AsyncExitStack, list[Target]]]:
    async with contextlib.AsyncExitStack() as stack:
        yield stack, []


@pytest_asyncio.fixture(loop_scope="module")
async def target(_targets, emulator) -> Target:
    stack, targets = _targets
    if not targets or not targets[-1].is_running:
        targets.append(await stack.enter_async_context(start_target(emulator)))
    targets[-1].forget()
    return targets[-1]


# Messages and heads that the bridge refuses. Large payloads are built when their test runs.

LARGE_HEADS = {
    "3 MB of metadata": lambda: (
        UNACKNOWLEDGED + encode_call(MESSAGE, *((b"x-%d" % number, b"x" * 15_000) for number in range(200)))
    ),
    "3 MB of metadata in one value": lambda: UNACKNOWLEDGED + encode_call(MESSAGE, (b"x-one", b"x" * 3_000_000)),
}
STATUSES = {
    "undecodable": (lambda: OPENING + encode_call(encode_message(b"\xff" * 100)), INVALID_ARGUMENT),
    "undecodable stream": (lambda: OPENING + encode_call(encode_message(b"\xff" * 100), path=STREAM), INVALID_ARGUMENT),
    "empty message": (lambda: OPENING + encode_call(encode_message(b"")), INVALID_ARGUMENT),
    "gzip bomb": (
        lambda: OPENING + encode_call(encode_message(gzip.compress(bytes(60_000_000)), 1), GZIP),
        RESOURCE_EXHAUSTED,
    ),
    "length of 4 GB": (lambda: OPENING + encode_call(b"\x00\xff\xff\xff\xff" + REQUEST), RESOURCE_EXHAUSTED),
    "3 MB of metadata, SETTINGS never acknowledged": (
        LARGE_HEADS["3 MB of metadata"],
        INVALID_ARGUMENT,  # the bridge's
        RESOURCE_EXHAUSTED,  # the core's, which does not always check in time
        CALM,
    ),
    "64 MB of metadata": (
        lambda: OPENING + encode_call(MESSAGE, (b"x-one", b"x" * 64 * MIB)),
        RESOURCE_EXHAUSTED,
        CALM,
    ),
}


@parametrize_cases(STATUSES)
async def test_call_that_cannot_be_served_gets_a_status_of_its_own(target, case):
    build, *statuses = case
    assert read_outcome(await exchange_bytes(target.address, build())) in statuses
    assert target.is_clean
    await target.check_unharmed()


NO_MESSAGES = {
    "no message": OPENING + encode_call(b""),
    "no DATA": OPENING + encode_headers(BLOCK, 1, END_STREAM),
    "no message for a stream": OPENING + encode_call(b"", path=STREAM),
}
HALF_CALLS = {
    "half a length": OPENING + encode_call(b"\x00\x00\x00"),
    "length of 256 bytes, data of fewer": OPENING + encode_call(b"\x00\x00\x00\x01\x00" + REQUEST),
    "length of 4 MB, data of fewer": OPENING + encode_call(b"\x00\x00\x3f\xff\xff" + REQUEST),
}


@parametrize_cases(NO_MESSAGES)
async def test_call_without_a_message_gets_a_status(target, case):
    status, reason = (UNIMPLEMENTED, "") if IS_NATIVE else (INVALID_ARGUMENT, "UNDECODABLE_REQUEST")
    assert parse_grpc_status(await exchange_bytes(target.address, case)) == status
    await eventually(lambda: target.list_reasons() == [reason])
    assert target.emulator.exchanges == []
    await target.check_unharmed()


@parametrize_cases(HALF_CALLS)
async def test_call_without_a_whole_message_gets_a_status(target, case):
    assert parse_grpc_status(await exchange_bytes(target.address, case)) == INVALID_ARGUMENT
    await eventually(lambda: target.list_reasons() == ["UNDECODABLE_REQUEST"])
    assert target.emulator.exchanges == []
    await target.check_unharmed()


CONTROLS = [bytes([code]) for code in (*range(0x20), 0x7F, *range(0x80, 0x100, 9))]
FORBIDDEN = (b"\0", b"\n", b"\r") if IS_NATIVE else ()
"""Characters that HTTP/2 forbids: a stream with one is reset (RFC 9113, 8.2.1)."""


@pytest.mark.parametrize("name", [b"authorization", b"x-request-id", b"traceparent", b"tracestate", b"user-agent"])
async def test_value_with_a_control_character_never_reaches_the_gateway(target, name):
    calls = [
        encode_call(MESSAGE, (name, b"a" + code + b"x-smuggled: 1"), stream=2 * at + 1)
        for at, code in enumerate(CONTROLS)
    ]
    async with hold_connections(target.address, OPENING + b"".join(calls)):
        await eventually(lambda: target.list_reasons().count("INVALID_METADATA") == len(CONTROLS) - len(FORBIDDEN))
    assert target.emulator.exchanges == []
    await target.check_unharmed()


async def test_every_call_of_a_burst_is_answered(target):
    """If more than a thousand wait, grpc's core cancels calls by chance, unless an option forbids it."""
    bad = encode_message(b"\xff")
    payload = OPENING + b"".join(encode_call(bad, stream=number) for number in range(1, 200, 2))
    async with hold_connections(target.address, payload, 21):
        await target.check_service()
        with contextlib.suppress(TimeoutError):
            await eventually(lambda: target.list_reasons().count("UNDECODABLE_REQUEST") == 2100)
    assert Counter(filter(None, target.list_reasons())) == {"UNDECODABLE_REQUEST": 2100}
    await target.check_unharmed()


async def test_debug_data_of_a_goaway_is_not_in_the_log(target):
    forged = b'debug data\n{"event": "call", "code": "OK", "reason": "FORGED"}\n'
    payload = OPENING + encode_frame(GOAWAY, 0, 0, bytes(4) + (99).to_bytes(4) + forged)
    async with hold_connections(target.address, payload):
        await target.check_service()
    await target.check_unharmed()
    assert "FORGED" not in target.list_reasons()
    assert not any("debug data" in line for line in target.log_lines)


# Memory


def encode_unread_stream(*, window: int, connection_window: int = 0) -> bytes:
    """Return a connection with a stream of 100,000 chunks of 1,000 bytes, and with these windows."""
    body = encode_message(scenario("many?chunks=100000&bytes=1000").SerializeToString())
    update = encode_frame(WINDOW_UPDATE, 0, 0, connection_window.to_bytes(4)) if connection_window else b""
    return encode_opening(window) + update + encode_call(body, path=STREAM)


@parametrize_cases(LARGE_HEADS)
async def test_memory_of_large_heads_is_freed(target, case):
    payload = case()

    async def attack() -> None:
        for _ in range(4):
            answers = await asyncio.gather(*(exchange_bytes(target.address, payload) for _ in range(5)))
            assert {read_outcome(answer) for answer in answers} <= {INVALID_ARGUMENT, RESOURCE_EXHAUSTED, CALM}

    await target.check_cost_freed(attack)
    assert target.is_clean


def encode_big_call(**fields) -> bytes:
    """Return a connection whose call has 3 MB of content, a few KB in gzip."""
    body = chat("x" * 3_000_000, **fields).SerializeToString()
    return OPENING + encode_call(encode_message(gzip.compress(body), 1), GZIP)


BIG_CALLS = {
    "undecodable": (
        lambda: OPENING + encode_call(encode_message(gzip.compress(bytes(3_000_000)), 1), GZIP),
        INVALID_ARGUMENT,
    ),
    "invalid": (lambda: encode_big_call(model=""), INVALID_ARGUMENT),
    "refused upstream": (lambda: encode_big_call(model="nobody"), None),
    "failed upstream": (lambda: encode_big_call(model="scenario::error?status=503"), None),
}


@parametrize_cases(BIG_CALLS)
async def test_memory_of_big_requests_that_fail_is_freed(target, case):
    build, status = case
    payload = build()

    async def attack() -> None:
        for _ in range(10):
            found = parse_grpc_status(await exchange_bytes(target.address, payload))
            assert found == status if status else found not in {0, None}
            target.emulator.exchanges.clear()

    await target.check_cost_freed(attack)


async def test_memory_of_big_requests_whose_callers_disconnect_is_freed(target):
    payload = encode_big_call(model="scenario::stall?headers=0")

    async def attack() -> None:
        for _ in range(5):
            async with hold_connections(target.address, payload):
                exchange = await target.next_exchange()
            await exchange.wait_closed()
            target.emulator.exchanges.clear()
            del exchange

    await target.check_cost_freed(attack)


async def test_calls_reset_while_they_run_are_cancelled_upstream(target):
    """These resets come after the handlers have started, unlike a reset that comes with its call."""
    body = encode_message(scenario("stall?headers=0").SerializeToString())

    async def attack() -> None:
        target.emulator.exchanges.clear()
        numbers = range(1, 200, 2)
        async with hold_connections(target.address, OPENING) as (connected,):
            await send_what_fits(connected, b"".join(encode_call(body, stream=number) for number in numbers))
            for _ in numbers:
                exchange = await target.next_exchange()
            await target.check_service()
            await send_what_fits(
                connected, b"".join(encode_frame(RST_STREAM, 0, number, (8).to_bytes(4)) for number in numbers)
            )
            await exchange.wait_closed()
            stalled = [each for each in target.emulator.exchanges if not each.finished]
            await eventually(lambda: all(each.closed_at for each in stalled))
            await target.check_service()

    await target.check_cost_freed(attack)


async def test_streams_without_a_reader_do_not_make_the_bridge_read_the_whole_answer(target):
    """The gateway has 100 MB for each of two streams; the bridge buffers far less."""
    before = target.cost
    async with hold_connections(target.address, encode_unread_stream(window=2**31 - 1, connection_window=2**30), 2):
        exchanges = [await target.next_exchange() for _ in range(2)]
        assert max([await wait_for_backpressure(exchange) for exchange in exchanges]) < 50_000
        assert target.cost.resident_bytes - before.resident_bytes < 60 * MIB
    for exchange in exchanges:
        await exchange.wait_closed()
    await target.check_unharmed()


# Limits of the process


async def test_process_without_free_file_descriptors_recovers(emulator):
    resource = pytest.importorskip("resource")
    if not hasattr(resource, "prlimit"):
        pytest.skip("no prlimit here")
    async with start_target(emulator) as target:
        limit = target.cost.files + 50
        resource.prlimit(target.bridge.process.pid, resource.RLIMIT_NOFILE, (limit, limit))
        before = target.cost
        async with hold_connections(target.address, OPENING, 200):
            await eventually(lambda: target.cost.files >= limit - 1)
        await eventually(lambda: target.cost.files <= before.files)
        await wait_for_service(target.address)  # the core waits a second before it accepts again
        await target.check_service()
        assert target.bridge.process.returncode is None


async def test_connections_above_the_limit_are_closed_and_the_others_are_served(emulator):
    async with contextlib.AsyncExitStack() as stack:
        bridge = await stack.enter_async_context(start_bridge_process(emulator, connections__connections_max=20))
        assert (await bridge.ask(chat())).failure is None
        async with hold_connections(bridge.address, OPENING, 100) as sockets:
            loop = asyncio.get_running_loop()
            ends = [asyncio.create_task(loop.sock_recv(each, 1000)) for each in sockets]
            await eventually(lambda: sum(end.done() and not is_open(end) for end in ends) >= 80)
            await answer_good_call(bridge)
            for end in ends:
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)
        await wait_for_service(bridge.address)


def is_open(end: asyncio.Task) -> bool:
    return end.exception() is None and end.result() != b""


async def wait_for_service(address: str) -> None:
    """Repeat a call until it succeeds."""
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        async with asyncio.timeout(WAIT_S):
            while (await Bridge(address, channel).ask(chat(), wait_for_ready=True)).failure is not None:
                pass


STALLED = {
    "no message yet": OPENING + HEAD,
    "half a message": OPENING + HEAD + encode_frame(DATA, 0, 1, MESSAGE[:-5]),
    "ended without a message": OPENING + encode_call(b""),
    "half a header block": OPENING + encode_frame(HEADERS, 0, 1, BLOCK),
    "half a preface": PREFACE[:10],
    "a stream without a reader": encode_unread_stream(window=0),
}


async def test_stalled_connections_do_not_delay_the_exit(emulator):
    async with contextlib.AsyncExitStack() as stack:
        settings = {"drain_grace_s": 0.2, "log__level": "error"}
        bridge = await stack.enter_async_context(start_bridge_process(emulator, **settings))
        for payload in STALLED.values():
            await stack.enter_async_context(hold_connections(bridge.address, payload, 5))
        await answer_good_call(bridge)
        bridge.process.send_signal(signal.SIGTERM)
        assert await bridge.wait_for_exit() == 0
        assert bridge.log == ""
