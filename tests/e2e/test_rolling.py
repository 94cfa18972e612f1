"""A rolling restart of two instances behind a client that balances between them loses no call."""

import asyncio
import contextlib
import json
import os
import signal
import sys

import grpc
import pytest

from tests.conftest import WAIT_S, Bridge, chat, eventually, find_free_port, scenario
from tests.e2e.process import find_children

CALLS = 400
AT_ONCE = 20

# A client that watches each instance's health stops using one that drains within its drain_delay; the other client
# learns of it from the status of its calls, and from the last GOAWAY.
BALANCED = {"loadBalancingConfig": [{"round_robin": {}}]}
CLIENTS = {"watches health": {**BALANCED, "healthCheckConfig": {"serviceName": ""}}, "does not": BALANCED}


# Runs an instance twice, the second time only if the first ended with 0. A shell starts them: in a process
# that forks, its grpc client hangs.
RUN_TWICE = '"$@" && exec "$@"'


def find_free_address():
    return f"127.0.0.1:{find_free_port()}"


@contextlib.asynccontextmanager
async def run_instance(address, upstream):
    """Run a bridge, and another in its place when it has ended with 0; yield the shell when the first one serves."""
    settings = ("--listen", address, "--admin-listen", "127.0.0.1:0", "--upstream", upstream)
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", RUN_TWICE, "sh", sys.executable, "-m", "bridge", "serve", *settings),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=os.environ | {"OLLM_BRIDGE_DRAIN_DELAY_S": "0.3", "OLLM_BRIDGE_DRAIN_GRACE_S": "10"},
    )
    try:
        assert await process.stdout.readline()
        yield process
    finally:
        for pid in [*find_children(process.pid, b"bridge"), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await process.communicate()


@pytest.mark.parametrize("config", CLIENTS.values(), ids=CLIENTS)
async def test_rolling_restart_loses_no_call(emulator, config):
    addresses = [find_free_address(), find_free_address()]
    answers = []
    restarted = asyncio.Event()

    async def make_calls(bridge, number):
        """Make unary and streamed calls in turn until both instances have been restarted and there are enough."""
        turn = number
        while len(answers) < CALLS or not restarted.is_set():
            turn += 1
            request = scenario("pace?chunks=10&interval_ms=5") if turn % 2 else chat("Hi")
            answer = await bridge.ask(request, stream=bool(turn % 2), timeout=WAIT_S)
            while answer.failure is not None and answer.failure.code == "UNAVAILABLE" and not answer.messages:
                await asyncio.sleep(0.05)  # nothing was generated, so a retry at the other instance is safe
                answer = await bridge.ask(request, stream=bool(turn % 2), timeout=WAIT_S)
            answers.append(answer)

    options = [("grpc.service_config", json.dumps(config)), ("grpc.max_reconnect_backoff_ms", 200)]
    async with (
        run_instance(addresses[0], emulator.url) as one,
        run_instance(addresses[1], emulator.url) as other,
        grpc.aio.insecure_channel(f"ipv4:{','.join(addresses)}", options=options) as channel,
    ):
        callers = [asyncio.create_task(make_calls(Bridge("", channel), number)) for number in range(AT_ONCE)]
        for process in (one, other):
            before = len(answers)
            await eventually(lambda before=before: len(answers) > before + CALLS // 5)
            (pid,) = find_children(process.pid, b"bridge")
            os.kill(pid, signal.SIGTERM)
            async with asyncio.timeout(WAIT_S):
                assert await process.stdout.readline()  # it serves again
        restarted.set()
        await asyncio.gather(*callers)
    assert len(answers) >= CALLS
    assert [answer.failure for answer in answers if answer.failure is not None] == []
    assert len(emulator.exchanges) == len(answers)  # no call ran twice
