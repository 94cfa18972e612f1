"""Reports of the load: in the trailers of a call, and as a stream beside it, if a setting says so."""

import asyncio
import contextlib
import json

import grpc
import pytest

from bridge.server import orca
from tests.kit.client import Bridge, chat, scenario
from tests.kit.http2 import PATH, SERVICE, encode_connection, exchange_bytes, parse_trailers
from tests.kit.waiting import WAIT_S

STALL = "stall?headers=0"
NAME = orca.TRAILER.encode()
AT_ONCE, BATCH = 10, 200


async def fetch_trailers(bridge, request, path=PATH):
    """Make a call without a stock client, since those of grpc's core keep the report to themselves."""
    return parse_trailers(await exchange_bytes(bridge.address, encode_connection(request, path=path)))


async def test_nothing_is_told_of_the_load_by_default(bridge):
    trailers = await fetch_trailers(bridge, chat())
    assert trailers[b"grpc-status"] == b"0"
    assert NAME not in trailers
    stream = bridge.channel.unary_stream(f"/{orca.SERVICE}/{orca.METHOD}")(b"")
    assert (await stream.code()).name == "UNIMPLEMENTED"


@pytest.mark.parametrize("path", [PATH, SERVICE + b"StreamChatCompletion"], ids=["unary", "stream"])
@pytest.mark.parametrize(
    ("request_", "status"), [(chat(), b"0"), (scenario("error?status=503"), b"14")], ids=["OK", "failed"]
)
async def test_trailers_say_how_full_the_bridge_is(start_bridge, emulator, path, request_, status):
    bridge = await start_bridge(load_reports=["trailers"], calls_max=10)
    others = [asyncio.create_task(bridge.ask(scenario(STALL))) for _ in range(4)]
    for _ in others:
        await emulator.next_exchange()
    trailers = await fetch_trailers(bridge, request_, path)
    assert trailers[b"grpc-status"] == status
    report = orca.LoadReport.FromString(trailers[NAME])
    assert report.application_utilization >= 0.5
    assert report.rps_fractional > 0
    for each in others:
        each.cancel()


async def test_stream_tells_the_load_until_its_caller_ends_it(start_bridge):
    bridge = await start_bridge(load_reports=["stream"], calls_max=10)
    stream = bridge.channel.unary_stream(f"/{orca.SERVICE}/{orca.METHOD}")(b"\x0a\x02\x08\x01")
    async with asyncio.timeout(WAIT_S):
        first = orca.LoadReport.FromString(await stream.read())
        assert first.application_utilization < 0.5
        assert (await bridge.ask(chat())).failure is None
        assert orca.LoadReport.FromString(await stream.read()).rps_fractional > 0
    stream.cancel()
    assert NAME not in await fetch_trailers(bridge, chat())


@contextlib.asynccontextmanager
async def balance(start_bridge, reports, policy):
    """Yield what makes a batch of calls by a client of grpc's core.

    It returns the share of the bridge that has ten times the room of the other one.
    """
    small = await start_bridge(calls_max=40, load_reports=reports)
    large = await start_bridge(calls_max=400, load_reports=reports)
    periods = {"blackoutPeriod": "0s", "weightUpdatePeriod": "0.1s"}
    config = json.dumps({"loadBalancingConfig": [{"weighted_round_robin": periods | policy}]})
    target = f"ipv4:{small.address},{large.address}"
    async with grpc.aio.insecure_channel(target, options=[("grpc.service_config", config)]) as channel:
        client = Bridge(target, channel)

        async def call_in_turn():
            for _ in range(BATCH // AT_ONCE):
                assert (await client.ask(scenario("slow?delay_s=0.02"))).failure is None

        async def run_batch():
            before = len(large.records.all)
            await asyncio.gather(*(call_in_turn() for _ in range(AT_ONCE)))
            return (len(large.records.all) - before) / BATCH

        async with asyncio.timeout(WAIT_S):
            while not (small.records.all and large.records.all):  # until the client is connected to both
                assert (await client.ask(chat())).failure is None
        yield run_batch


@pytest.mark.parametrize(
    ("reports", "policy"),
    [
        pytest.param(["trailers"], {}, id="trailers"),
        pytest.param(["stream"], {"enableOobLoadReport": True, "oobReportingPeriod": "1s"}, id="stream"),
    ],
)
async def test_client_that_balances_by_reports_prefers_the_emptier_bridge(start_bridge, reports, policy):
    async with balance(start_bridge, reports, policy) as run_batch, asyncio.timeout(WAIT_S):
        while await run_batch() < 0.75:
            pass


async def test_client_without_reports_takes_turns(start_bridge):
    async with balance(start_bridge, [], {}) as run_batch:
        assert {round(await run_batch(), 1) for _ in range(3)} == {0.5}
