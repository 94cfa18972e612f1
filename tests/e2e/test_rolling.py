"""A rolling restart of two instances behind a client that balances between them loses no call."""

import asyncio
import contextlib
import json
import os
import signal
import sys

import grpc
import pytest

from tests.conftest import Bridge, chat, eventually, free_port, scenario
from tests.e2e.process import children

CALLS = 1000
AT_ONCE = 20

# A client that watches each instance's health leaves one that drains within its drain_delay; the other one learns of it
# by its calls' status, and by the GOAWAY of the end.
BALANCED = {"loadBalancingConfig": [{"round_robin": {}}]}
CLIENTS = {"watches health": {**BALANCED, "healthCheckConfig": {"serviceName": ""}}, "does not": BALANCED}


# Both lives of an instance, the second only where the first ended well. A shell starts them, since a process that forks
# while it has a grpc client leaves that client hanging.
TWO_LIVES = '"$@" && exec "$@"'


def free_address():
    return f"127.0.0.1:{free_port()}"


@contextlib.asynccontextmanager
async def instance(address, upstream):
    """Run a bridge, and once it has ended well, another in its place; give the shell that does so, once it serves."""
    settings = ("--listen", address, "--admin-listen", "127.0.0.1:0", "--upstream", upstream)
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", TWO_LIVES, "sh", sys.executable, "-m", "bridge", "serve", *settings),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=os.environ | {"OLLM_BRIDGE_DRAIN_DELAY_S": "0.3", "OLLM_BRIDGE_DRAIN_GRACE_S": "10"},
    )
    try:
        assert await process.stdout.readline()
        yield process
    finally:
        for pid in [*children(process.pid, b"bridge"), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await process.communicate()


@pytest.mark.parametrize("config", CLIENTS.values(), ids=CLIENTS)
async def test_rolling_restart_loses_no_call(emulator, config):
    addresses = [free_address(), free_address()]
    answers = []
    restarted = asyncio.Event()

    async def caller(bridge, number):
        """Call, in turn unary and streamed, until enough is done and both instances have been restarted."""
        turn = number
        while len(answers) < CALLS or not restarted.is_set():
            turn += 1
            request = scenario("pace?chunks=10&interval_ms=5") if turn % 2 else chat("Hi")
            answer = await bridge.ask(request, stream=bool(turn % 2), timeout=20)
            while answer.failure is not None and answer.failure.code == "UNAVAILABLE" and not answer.messages:
                await asyncio.sleep(0.05)  # nothing was generated, so it is safe to repeat: the other instance has it
                answer = await bridge.ask(request, stream=bool(turn % 2), timeout=20)
            answers.append(answer)

    options = [("grpc.service_config", json.dumps(config)), ("grpc.max_reconnect_backoff_ms", 200)]
    async with (
        instance(addresses[0], emulator.url) as one,
        instance(addresses[1], emulator.url) as other,
        grpc.aio.insecure_channel(f"ipv4:{','.join(addresses)}", options=options) as channel,
    ):
        callers = [asyncio.create_task(caller(Bridge("", channel), number)) for number in range(AT_ONCE)]
        for process in (one, other):
            before = len(answers)
            await eventually(lambda before=before: len(answers) > before + CALLS // 5, timeout_s=20)
            (pid,) = children(process.pid, b"bridge")
            os.kill(pid, signal.SIGTERM)
            async with asyncio.timeout(20):
                assert await process.stdout.readline()  # it serves again
        restarted.set()
        await asyncio.gather(*callers)
    assert len(answers) >= CALLS
    assert [answer.failure for answer in answers if answer.failure is not None] == []
    assert len(emulator.exchanges) == len(answers)  # and none was repeated that had run
