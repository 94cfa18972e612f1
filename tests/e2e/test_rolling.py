"""A rolling restart of two instances behind a client that balances between them loses no call.

grpc.aio may end a call as CANCELLED that reaches it just as it stops (grpc_aio.py, row 1). Such a call has not run, and
a client that watches health makes none.
"""

import asyncio
import contextlib
import json
import os
import signal

import grpc
import pytest

from tests.kit.bridges import SERVE
from tests.kit.client import Bridge, scenario
from tests.kit.proc import find_children
from tests.kit.processes import build_bridge_environment, find_free_port, read_address, start_program_async
from tests.kit.waiting import WAIT_S, eventually

CALLS = 150
AT_ONCE = 20

# A client that watches each instance's health stops using one that drains within its drain_delay, which is long enough
# for that on a busy machine; the other client learns of it from the status of its calls, and from the last GOAWAY.
BALANCED = {"loadBalancingConfig": [{"round_robin": {}}]}
CLIENTS = {"watches health": {**BALANCED, "healthCheckConfig": {"serviceName": ""}}, "does not": BALANCED}


# Runs an instance twice, the second time only if the first ended with 0. A shell starts them: in a process
# that forks, its grpc client hangs.
RUN_TWICE = '"$@" && exec "$@"'


def find_free_address():
    return f"127.0.0.1:{find_free_port()}"


@contextlib.asynccontextmanager
async def run_instance(address, upstream, engine, drain_delay_s):
    """Run a bridge, and another in its place when it has ended with 0; yield the shell when the first one serves."""
    settings = {"listen": address, "drain_delay_s": drain_delay_s, "drain_grace_s": 10, "server__engine": engine}
    command = ("sh", "-c", RUN_TWICE, "sh", *SERVE)
    environment = build_bridge_environment(upstream, **settings)
    async with start_program_async(*command, environment=environment, stderr=asyncio.subprocess.DEVNULL) as process:
        try:
            await read_address(process)
            yield process
        finally:
            for pid in find_children(process.pid, b"bridge"):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("engine", ["native", "grpcio"])
@pytest.mark.parametrize("client", CLIENTS)
async def test_rolling_restart_loses_no_call(emulator, client, engine):
    addresses = [find_free_address(), find_free_address()]
    drain_delay_s = 3 if client == "watches health" else 0.3
    answers = []
    restarted = asyncio.Event()

    async def make_calls(bridge, number):
        """Make unary and streamed calls in turn until both instances have been restarted and there are enough."""
        turn = number
        while len(answers) < CALLS or not restarted.is_set():
            turn += 1
            request = scenario("pace?chunks=10&interval_ms=20") if turn % 2 else scenario("slow?delay_s=0.1")
            answer = await bridge.ask(request, stream=bool(turn % 2), timeout=WAIT_S)
            while answer.failure is not None and answer.failure.code == "UNAVAILABLE" and not answer.messages:
                await asyncio.sleep(0.05)  # nothing was generated, so a retry at the other instance is safe
                answer = await bridge.ask(request, stream=bool(turn % 2), timeout=WAIT_S)
            answers.append(answer)

    options = [("grpc.service_config", json.dumps(CLIENTS[client])), ("grpc.max_reconnect_backoff_ms", 200)]
    async with (
        run_instance(addresses[0], emulator.url, engine, drain_delay_s) as one,
        run_instance(addresses[1], emulator.url, engine, drain_delay_s) as other,
        grpc.aio.insecure_channel(f"ipv4:{','.join(addresses)}", options=options) as channel,
    ):
        callers = [asyncio.create_task(make_calls(Bridge("", channel), number)) for number in range(AT_ONCE)]
        for process in (one, other):
            before = len(answers)
            await eventually(lambda before=before: len(answers) > before + CALLS // 5)
            (pid,) = find_children(process.pid, b"bridge")
            os.kill(pid, signal.SIGTERM)
            await read_address(process)  # it serves again
        restarted.set()
        await asyncio.gather(*callers)
    assert len(answers) >= CALLS
    lost = [answer for answer in answers if answer.failure is not None]
    if engine == "grpcio" and client != "watches health":
        assert {(answer.failure.code, len(answer.messages)) for answer in lost} <= {("CANCELLED", 0)}
        assert len(lost) <= AT_ONCE
    else:
        assert [answer.failure for answer in lost] == []
    assert len(emulator.exchanges) == len(answers) - len(lost)  # no call ran twice, and none that was lost
