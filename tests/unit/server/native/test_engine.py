"""Tests of bridge/server/native/engine.py: what all connections share, and how the engine stops."""

import asyncio
import contextlib
import socket

import pytest

from bridge.server.native.engine import Engine
from bridge.server.native.link import Link
from bridge.settings import Settings, SettingsError
from tests.kit import http2
from tests.kit.hostile import hold_connections
from tests.kit.waiting import WAIT_S, eventually
from tests.unit.server.native.serving import MANY, ONE, make_sleeper, serve

MESSAGE = http2.encode_message(b"hello")
CALL = http2.OPENING + http2.encode_call(MESSAGE, path=ONE)


async def test_call_is_served_at_a_tcp_port_and_at_a_unix_socket(tmp_path):
    for listen in ("127.0.0.1:0", "localhost:0"):
        async with serve(listen=listen) as served:
            assert http2.parse_grpc_status(await http2.exchange_bytes(served.address, CALL)) == 0
    path = tmp_path / "bridge.sock"
    peers = []

    async def handle(rpc) -> None:
        peers.append(rpc.peer)
        rpc.end(0, "", ())

    async with serve(handle, listen=f"unix:{path}"):
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(CALL)
        await reader.read(1)
        await eventually(lambda: peers == ["unix:"])
        writer.close()
    assert not path.exists()


async def test_address_that_cannot_be_used_is_refused():
    async with serve() as served:
        with pytest.raises(SettingsError, match="Address already in use"):
            Engine(Settings(listen=served.address), [])
    with pytest.raises(SettingsError, match="insecure = true"):
        Engine(Settings(listen="0.0.0.0:0"), [])


async def test_connections_above_the_limit_are_closed_at_once():
    async with serve(connections={"connections_max": 2}) as served:
        async with hold_connections(served.address, http2.OPENING, 2):
            await eventually(lambda: len(served.engine.shared.links) == 2)
            with pytest.raises((AssertionError, ConnectionError)):
                assert await http2.exchange_bytes(served.address, CALL)
        await eventually(lambda: not served.engine.shared.links)
        assert http2.parse_grpc_status(await http2.exchange_bytes(served.address, CALL)) == 0


@pytest.mark.parametrize("turns", range(6))
async def test_connection_that_comes_as_the_engine_stops_is_closed(turns):
    """In each turn of the loop from its accept on."""
    async with serve() as served:
        host, _, port = served.address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=WAIT_S) as client:
            for _ in range(turns):
                await asyncio.sleep(0)
            await served.engine.stop()
            assert not served.engine.shared.links
            await asyncio.to_thread(read_to_end, client)


async def test_engine_that_stops_takes_no_connection_whose_handshake_ends_late():
    async with serve() as served:
        await served.engine.stop()
        assert not served.engine.shared.add(Link(served.engine.shared))


def read_to_end(client: socket.socket) -> None:
    """Read until the peer ends the connection, however it does; else TimeoutError."""
    with contextlib.suppress(ConnectionResetError):
        while client.recv(65_536):
            pass


async def test_bytes_that_nobody_reads_have_a_bound_for_all_connections():
    async def wait(rpc) -> None:
        await asyncio.sleep(60)

    large = http2.encode_headers(http2.encode_block(http2.build_fields(path=MANY))) + http2.encode_data(bytes(60_000))
    async with serve(wait, connections={"unread_bytes_max": 1024 * 1024}) as served:
        async with hold_connections(served.address, http2.OPENING + large, 17):
            await eventually(lambda: served.engine.shared.unread_bytes == 17 * 60_000)
            answer = await http2.exchange_bytes(served.address, http2.OPENING + large)
            assert http2.parse_grpc_status(answer) == 8
            assert b"unread_bytes_max = 1048576" in answer
        await served.wait_until_nothing_is_left(len(asyncio.all_tasks()))


async def test_drain_tells_callers_and_takes_the_calls_of_those_who_do_not_know_yet():
    loop = asyncio.get_running_loop()
    async with serve() as served, hold_connections(served.address, http2.OPENING) as (connected,):
        await eventually(lambda: len(served.engine.shared.links) == 1)
        draining = asyncio.create_task(served.engine.drain())
        found = b""
        while b"draining" not in found:
            found += await loop.sock_recv(connected, 1000)
        await loop.sock_sendall(connected, http2.encode_call(MESSAGE, path=ONE))
        while http2.parse_grpc_status(found) is None:
            found += await loop.sock_recv(connected, 1000)
        assert not draining.done()
        await loop.sock_sendall(connected, 2 * http2.encode_frame(6, 1, 0, b"draining"))
        await draining
        found = b""
        while more := await loop.sock_recv(connected, 1000):  # nothing goes on, so it is closed
            found += more
        assert http2.find_goaway(found) == 0


async def test_drain_does_not_wait_for_those_who_do_not_answer():
    async with serve() as served, hold_connections(served.address, http2.OPENING):
        await eventually(lambda: len(served.engine.shared.links) == 1)
        await served.engine.drain()
        assert all(link.is_going_away for link in served.engine.shared.links)


async def test_drain_does_not_wait_for_those_who_connect_meanwhile():
    """As a balancer does at once whose connection goes away. A drain that waits for its whole time began earlier."""
    loop = asyncio.get_running_loop()
    async with serve() as silent, hold_connections(silent.address, http2.OPENING), serve() as served:
        async with hold_connections(served.address, http2.OPENING) as (connected,):
            await eventually(lambda: len(silent.engine.shared.links) == len(served.engine.shared.links) == 1)
            whole = asyncio.create_task(silent.engine.drain())
            draining = asyncio.create_task(served.engine.drain())
            found = b""
            while b"draining" not in found:
                found += await loop.sock_recv(connected, 1000)
            async with hold_connections(served.address, http2.OPENING):
                await eventually(lambda: len(served.engine.shared.links) == 2)
                await loop.sock_sendall(connected, 2 * http2.encode_frame(6, 1, 0, b"draining"))
                await draining
                assert not any(link.is_going_away for link in silent.engine.shared.links)
        whole.cancel()
        await asyncio.wait([whole])


async def test_stop_ends_calls_that_go_on_and_leaves_nothing():
    ended = []

    tasks = len(asyncio.all_tasks())
    async with (
        serve(make_sleeper(lambda rpc: ended.append(rpc.method))) as served,
        hold_connections(served.address, CALL, 3),
    ):
        await eventually(lambda: served.calls == 3)
        waiting = asyncio.create_task(served.engine.wait_for_end())
        await served.engine.stop()
        await waiting
        assert (ended, served.engine.shared.links) == (["One"] * 3, set())
        await served.wait_until_nothing_is_left(tasks + 1)
