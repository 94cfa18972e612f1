"""Tests of bridge/server/edges.py: the setting chooses the engine, and each does what the server asks of it."""

import asyncio

import grpc
import pytest

from bridge.core.headers import HeaderPolicy
from bridge.server.boundary import Boundary
from bridge.server.callers import Callers
from bridge.server.edges import bind_edge
from bridge.server.native.engine import Engine
from bridge.settings import Settings, SettingsError
from tests.unit.server.fake_service import Service, fail_with

ENGINES = ["grpcio", "native"]


def make(engine: str, listen: str = "127.0.0.1:0"):
    settings = Settings(listen=listen, server={"engine": engine})
    boundary = Boundary(Service(fail_with(ValueError())), HeaderPolicy(product="test/1"), Callers(settings), settings)
    return bind_edge(settings, boundary, [], stop_hold_s=0)


@pytest.mark.parametrize("engine", ENGINES)
async def test_edge_serves_from_its_start_to_its_stop(engine):
    edge = make(engine)
    await edge.start()
    waiting = asyncio.create_task(edge.wait_for_end())
    async with grpc.aio.insecure_channel(edge.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/ollmbridge.v1.ChatCompletionService/Nothing")(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert not waiting.done()
        await edge.drain()
        await edge.stop()
    await waiting


async def test_setting_chooses_the_engine():
    native, other = make("native"), make("grpcio")
    assert isinstance(native, Engine)
    assert not isinstance(other, Engine)
    assert Settings().server.engine == "native"
    for edge in (native, other):
        await edge.stop()


@pytest.mark.parametrize("engine", ENGINES)
async def test_edge_that_never_starts_leaves_no_socket(engine, tmp_path):
    edge = make(engine, f"unix:{tmp_path / 'socket'}")
    assert list(tmp_path.iterdir())
    edge.close()
    assert list(tmp_path.iterdir()) == []


async def test_native_edge_that_never_starts_gives_its_port_back():
    edge = make("native")
    edge.close()
    again = make("native", edge.address)
    again.close()


@pytest.mark.parametrize("engine", ENGINES)
async def test_port_that_is_taken_is_refused_when_the_edge_is_made(engine):
    edge = make(engine)
    with pytest.raises(SettingsError, match="listen: expected an address that can be bound"):
        make(engine, edge.address)
    await edge.stop()
