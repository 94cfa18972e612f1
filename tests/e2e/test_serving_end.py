"""A bridge whose serving ends by a fault, or can't begin, ends its process with an error."""

import sys

import pytest

from tests.kit.bridges import SERVE, SERVER_ENGINE, start_bridge_process
from tests.kit.client import chat
from tests.kit.health import answer_good_call
from tests.kit.processes import build_bridge_environment, run_program_async

OF_GRPCIO = {
    # grpc's server accepts calls in one task; if that fails, it accepts no more.
    # In releases from 1.84.0 on, a path that is not UTF-8 makes it fail.
    "the task that accepts calls": """
def create_task(loop, coroutine, **options):
    if coroutine.__qualname__ == "_schedule_rpc_coro":
        coroutine.close()
        raise MemoryError
    return asyncio.Task(coroutine, loop=loop, **options)

def at_start():
    asyncio.get_running_loop().set_task_factory(create_task)
""",
    "the server is stopped": """
servers = []
create_server = grpc.aio.server

def create_and_keep(*arguments, **options):
    servers.append(create_server(*arguments, **options))
    return servers[-1]

grpc.aio.server = create_and_keep

def at_start():
    asyncio.get_running_loop().create_task(servers[0].stop(None))
""",
}
FAILURES = (OF_GRPCIO if SERVER_ENGINE == "grpcio" else {}) | {
    "the function that prints the address": """
def at_start():
    raise OSError("standard output is closed")
""",
}
PROGRAM = """
import asyncio, sys, grpc
from bridge.cli.main import main, print_address
{death}
def on_ready(address, _about):
    print_address(address)
    at_start()

sys.exit(main(["serve"], on_ready=on_ready))
"""


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
async def test_end_of_the_serving_task_ends_the_process_with_an_error(emulator, failure):
    command = (sys.executable, "-c", PROGRAM.format(death=failure))
    async with start_bridge_process(emulator, command, drain_grace_s=0.2, health__upstream_period_s=0.1) as bridge:
        await bridge.ask(chat(), timeout=1)
        assert await bridge.wait_for_exit() not in {0, None}


async def test_port_in_use_ends_the_process_with_an_error(emulator, bridge):
    environment = build_bridge_environment(emulator.url, listen=bridge.address)
    code, out, err = await run_program_async(*SERVE, environment=environment)
    assert (code, out) == (2, "")
    assert "\nlisten: expected an address that can be bound" in "\n" + err
    await answer_good_call(bridge)
