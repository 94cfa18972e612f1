"""A client of the stock library that pings each ten seconds, as those of some SDKs do, for as long as that takes."""

import asyncio

import grpc

from tests.kit.client import Bridge, chat, scenario

PINGS = 4
"""With grpc's own limits the third ping that comes too soon ends the connection (ENHANCE_YOUR_CALM)."""


async def test_client_that_pings_each_ten_seconds_lives(start_bridge):
    bridge = await start_bridge()
    options = [
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    async with grpc.aio.insecure_channel(bridge.address, options=options) as channel:
        silent = Bridge(bridge.address, channel).stub.StreamChatCompletion(scenario("stall?after=1"))
        await silent.read()
        await asyncio.sleep(PINGS * 10 + 1)
        assert not silent.done()
        assert (await Bridge(bridge.address, channel).ask(chat("Hi"))).failure is None
        silent.cancel()
