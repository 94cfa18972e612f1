"""Hostile callers of the web port, over raw sockets, against a bridge in a process of its own.

All tests meet one process; if an attack kills it, the next test starts another. After each attack a good call succeeds
at both ports, the log has nothing but lines of calls, and memory and files are given back (`tests/kit/hostile.py`).
What a connection's own bounds do is in tests/unit/server/test_web_connection.py.
"""

import asyncio
import contextlib
import gzip
import json
import random
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest
import pytest_asyncio

from bridge.emulator import Emulator
from tests.kit.client import chat, scenario
from tests.kit.hostile import MIB, Target, connect, hold_connections, send_what_fits, start_target
from tests.kit.waiting import WAIT_S, eventually
from tests.kit.web import SERVICE, Web, encode_frame

pytestmark = pytest.mark.asyncio(loop_scope="module")

UNARY, STREAM = (f"/{SERVICE}/{name}" for name in ("CreateChatCompletion", "StreamChatCompletion"))
REQUEST = b'{"model":"echo","messages":[{"role":"user","text":"hello there"}]}'


def build_head(path: str = UNARY, length: int | None = 0, **headers: str) -> bytes:
    fields = {"host": "a", "content-type": "application/json"} | headers
    fields |= {"transfer-encoding": "chunked"} if length is None else {"content-length": str(length)}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode()


def build_call(body: bytes = REQUEST, path: str = UNARY, **headers: str) -> bytes:
    return build_head(path, len(body), **headers) + body


class WebTarget(NamedTuple):
    """A bridge, and the address of its web port."""

    target: Target
    address: str


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def emulator() -> AsyncIterator[Emulator]:
    async with Emulator() as emulator:
        yield emulator


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def _targets() -> AsyncIterator[tuple[contextlib.AsyncExitStack, list[WebTarget]]]:
    async with contextlib.AsyncExitStack() as stack:
        yield stack, []


@pytest_asyncio.fixture(loop_scope="module")
async def web(_targets, emulator) -> WebTarget:
    stack, targets = _targets
    if not targets or not targets[-1].target.is_running:
        settings = {"web_listen": "127.0.0.1:0", "upstream__forward_metadata": '["x-team"]'}
        settings["receiving_bytes_max"] = 512 * MIB  # half a body gives way after a second: 128 at once
        target = await stack.enter_async_context(start_target(emulator, **settings))
        targets.append(WebTarget(target, target.bridge.web_address))
        await answer_good_call(target.bridge.web_address)
    targets[-1].target.forget()
    return targets[-1]


async def answer_good_call(address: str) -> None:
    async with Web(address) as web:
        answer = await web.ask(chat())
    assert answer.messages[0].choices[0].message.text == "You said: hello there"


async def exchange(address: str, data: bytes) -> bytes:
    """Send bytes, and return what comes until the bridge closes the connection."""
    reader, writer = await asyncio.open_connection(*address.split(":"))
    parts = []
    try:
        writer.write(data)
        async with asyncio.timeout(WAIT_S):
            with contextlib.suppress(ConnectionError):
                while part := await reader.read(65536):
                    parts.append(part)
    finally:
        writer.transport.abort()
    return b"".join(parts)


FLOODS = {
    "connections that say nothing": b"",
    "half a head": b"POST / HTTP/1.1\r\nx: ",
    "half a body": build_head(length=3 * MIB) + bytes(64 * 1024),
    "a body of chunks that never ends": build_head(length=None) + b"1\r\n{\r\n" * 1000,
    "pipelined calls": build_call() * 200,
    "TLS": b"\x16\x03\x01\x02\x00\x01" + bytes(512),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(64),
    "preflights": b"OPTIONS / HTTP/1.1\r\nhost: a\r\norigin: https://a.example\r\n\r\n" * 100,
}


@pytest.mark.parametrize("payload", FLOODS.values(), ids=FLOODS)
async def test_port_serves_beside_hundreds_of_bad_callers_and_gives_all_back(web, payload):
    target, address = web

    async def attack() -> None:
        target.forget()
        async with hold_connections(address, payload, 300):
            await answer_good_call(address)

    await target.check_cost_freed(attack)
    await answer_good_call(address)


async def test_bodies_that_inflate_or_nest_or_hold_many_values_are_refused_cheaply(web, emulator):
    bomb = gzip.compress(bytes(64 * MIB))
    bodies = {
        "a bomb": build_call(bomb, content_encoding="gzip", connection="close"),
        "a framed bomb": build_call(
            encode_frame(bomb, 1), grpc_encoding="gzip", content_type="application/grpc-web", connection="close"
        ),
        "deep": build_call(b'{"a":' * 300_000 + b"1" + b"}" * 300_000, connection="close"),
        "many values": build_call(b'{"stop":[' + b"1," * 1_000_000 + b"1]}", connection="close"),
        "many members": build_call(
            json.dumps({"ollm": {"tags": {str(n): "" for n in range(100_000)}}}).encode(), connection="close"
        ),
        "many messages": build_call(json.dumps({"model": "a", "messages": [{}] * 11_000}).encode(), connection="close"),
        "a lie about its length": build_head(length=10**15, connection="close"),
    }
    target, address = web

    async def attack() -> None:
        target.forget()
        for name, data in bodies.items():
            answers = await asyncio.gather(*(exchange(address, data) for _ in range(4)))
            for answer in answers:
                status = answer[9:12]
                assert status in {b"400", b"429"} or b"grpc-status: 8" in answer, (name, answer[:200])

    await target.check_cost_freed(attack)
    assert emulator.exchanges == [] or all(each.json["model"] == "echo" for each in emulator.exchanges)


async def test_streams_that_nobody_reads_hold_the_gateway_and_end_when_they_are_left(web, emulator):
    request = scenario("many?chunks=20000&bytes=10000")
    body = encode_frame(request.SerializeToString())
    call = build_call(body, STREAM, content_type="application/connect+proto")
    target, address = web

    async def attack() -> None:
        target.forget()
        async with hold_connections(address, call, 20):
            await eventually(lambda: len(emulator.exchanges) >= 20)
            await answer_good_call(address)
            assert not any(each.finished for each in emulator.exchanges if each.json["model"] != "echo")
        await eventually(lambda: all(each.closed.is_set() for each in emulator.exchanges))

    await target.check_cost_freed(attack)


async def test_burst_of_calls_that_are_left_at_once_leaves_nothing(web, emulator):
    target, address = web

    async def attack() -> None:
        target.forget()
        for _ in range(300):
            connected = await connect(address)
            await send_what_fits(connected, build_call())
            connected.close()
        await eventually(lambda: all(each.closed.is_set() for each in emulator.exchanges))

    await target.check_cost_freed(attack)
    await answer_good_call(address)


async def test_calls_with_bytes_changed_at_random_end_in_an_answer_or_the_connections_end(web, emulator):
    chance = random.Random(3)
    calls = [
        build_call(),
        build_call(path=STREAM, content_type="application/connect+json"),
        build_call(encode_frame(chat().SerializeToString()), content_type="application/grpc-web"),
        build_head(length=None, connect_timeout_ms="5000") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(REQUEST), REQUEST),
    ]
    target, address = web
    changed = []
    for call in calls * 40:
        data = bytearray(call)
        for _ in range(chance.randint(1, 5)):
            place = chance.randrange(len(data))
            data[place : place + chance.randint(0, 2)] = chance.randbytes(chance.randint(0, 2))
        changed.append(bytes(data))
    tasks = [asyncio.create_task(send_and_read(address, data)) for data in changed]
    await eventually(lambda: sum(bool(task.done() and task.result()) for task in tasks) > len(tasks) // 2)
    done, waiting = await asyncio.wait(tasks, timeout=3)  # nothing announces that a call waits for more bytes
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert {task.result()[:9] for task in done} <= {b"", b"HTTP/1.1 "}
    await target.check_unharmed()
    await answer_good_call(address)
    assert target.is_clean


async def send_and_read(address: str, data: bytes) -> bytes:
    """Send bytes and no more, and return what comes first; none if the connection ends."""
    reader, writer = await asyncio.open_connection(*address.split(":"))
    try:
        writer.write(data)
        with contextlib.suppress(ConnectionError):
            return await reader.read(65536)
        return b""
    finally:
        writer.transport.abort()


async def test_header_of_a_call_cannot_smuggle_another_upstream(web, emulator):
    target, address = web
    for value in (
        b"a\rx-smuggled: b",
        b"a\nx-smuggled: b",
        b"a\0b",
        b"\xff",
        "a\u010d\u010ax-smuggled: b".encode(),
    ):
        data = build_call(connection="close").replace(b"host: a", b"host: a\r\nx-team: " + value)
        answer = await exchange(address, data)
        assert answer[9:12] in {b"400", b""}, answer[:100]
    await target.check_unharmed()
    assert target.is_clean
