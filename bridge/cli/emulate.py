"""`emulate`: the emulated gateway, until SIGTERM or SIGINT."""

import argparse
import asyncio
import signal

from bridge.cli.defaults import UsageError
from bridge.emulator import Emulator
from bridge.settings import split_address

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Serve, and return the exit code. Raises UsageError if the address or the scenario can't be used."""
    return asyncio.run(_serve(options))


async def _serve(options: argparse.Namespace) -> int:
    try:
        host, port = split_address(options.listen)
        emulator = Emulator(host=host, port=port, scenario=options.scenario)
    except ValueError as error:
        raise UsageError(str(error)) from None
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with emulator:
        options.on_ready(f"{host}:{emulator.port}")
        await stop.wait()
    return 0
