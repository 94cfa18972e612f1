"""Runs the scenarios one after the other: the faulty provider, the bridge in front of it, and a caller.

Each system of Failover Bench gets 30 s for a request or for silence in a stream, and so does the bridge, by its
`upstream.first_chunk_timeout_s` and `upstream.idle_timeout_s`. All else is the bridge's default.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Iterable
from dataclasses import dataclass

import grpc

from bridge.server.server import run_server
from bridge.settings import Settings
from lab.failover.callers import Caller, Outcome, call
from lab.failover.exchange import ANSWER, Timing
from lab.failover.provider import OK_MODEL, Provider
from lab.failover.scenarios import SCENARIOS, Evidence, Scenario, judge
from ollmbridge.v1.chat_completion_service_pb2_grpc import ChatCompletionServiceStub

__all__ = ["Cell", "run"]

ALIVE_S = 10.0


@dataclass
class Cell:
    """A scenario's verdict, the checks that do not hold, and the evidence."""

    scenario: Scenario
    verdict: str
    broken: list[str]
    evidence: Evidence


async def run(caller: Caller, timing: Timing, *, scenarios: Iterable[Scenario] = SCENARIOS) -> AsyncIterator[Cell]:
    """Yield a cell for each scenario."""
    provider = Provider(timing)
    async with provider.run():
        limits = dict.fromkeys(("first_chunk_timeout_s", "idle_timeout_s"), timing.limit_s)
        upstream = {"base_url": provider.url, **limits}
        async with run_server(Settings(listen="127.0.0.1:0", upstream=upstream)) as address:
            for scenario in scenarios:
                options = caller.list_channel_options(timing.backoff_s)
                async with grpc.aio.insecure_channel(address, options=options) as channel:
                    stub = ChatCompletionServiceStub(channel)
                    evidence = await _collect(provider, stub, caller, scenario, timing)
                yield Cell(scenario, *judge(scenario, evidence, has_other=caller.follows_status), evidence)


async def _collect(
    provider: Provider, stub: ChatCompletionServiceStub, caller: Caller, scenario: Scenario, timing: Timing
) -> Evidence:
    """Make a scenario's calls, and return what came of them."""
    provider.reset()
    started_at = time.monotonic()
    outcomes: list[Outcome] = []
    sent_at_s: list[float] = []
    for number in range(timing.calls if scenario.is_sequence else 1):
        await asyncio.sleep(max(0.0, started_at + number * timing.call_interval_s - time.monotonic()))
        sent_at_s.append(time.monotonic() - started_at)
        outcomes.append(await _end_within(scenario.end_s, caller.ask(stub, scenario.name, scenario.other)))
    attempts = list(provider.attempts)
    after = await _end_within(ALIVE_S, call(stub, OK_MODEL))
    return Evidence(timing, outcomes, attempts, scenario.other, after.text == ANSWER, sent_at_s)


async def _end_within(limit_s: float, asking: Awaitable[Outcome]) -> Outcome:
    """Wait for an outcome; one that does not come in time has no code."""
    try:
        async with asyncio.timeout(limit_s):
            return await asking
    except TimeoutError:
        return Outcome(took_s=limit_s)
