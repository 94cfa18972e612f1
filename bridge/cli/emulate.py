"""`emulate`: the emulated gateway, until SIGTERM or SIGINT."""

import argparse
import asyncio
import contextlib
import signal
from os import strerror

from bridge import __version__
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
        emulator = Emulator(host=host.strip("[]"), port=port, scenario=options.scenario)
    except ValueError as error:
        raise UsageError(str(error)) from None
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(emulator)
        except OSError as error:
            code = error.errno or 0
            reason = strerror(code) if code > 0 else error.strerror  # asyncio's is long
            raise UsageError(f"--listen: cannot listen at {options.listen!r}: {reason}") from None
        options.on_ready(f"{host}:{emulator.port}", f"ollm-bridge {__version__}, an emulated gateway")
        await stop.wait()
    return 0
