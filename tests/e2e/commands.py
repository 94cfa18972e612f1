"""Commands of `ollm-bridge`, run as a person runs them: as processes."""

import asyncio
import os
import signal
import sys
from contextlib import asynccontextmanager

from bridge.emulator import Emulator


def command(*arguments, stdout=asyncio.subprocess.PIPE, **environ):
    """Start a command, without the settings and keys of this environment."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OLLM_", "PYTEST"))}
    return asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "bridge", *arguments),
        stdout=stdout,
        stderr=asyncio.subprocess.PIPE,
        env=kept | {"OLLM_BRIDGE_ADMIN_LISTEN": "127.0.0.1:0"} | environ,
    )


async def run(*arguments, **environ):
    """Run a command to its end, and return its exit code, output and errors."""
    process = await command(*arguments, **environ)
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


@asynccontextmanager
async def listening(*arguments, **environ):
    """Run a command that listens, and yield its address; afterwards it must end with 0 on SIGTERM."""
    process = await command(*arguments, **environ)
    try:
        line = (await process.stdout.readline()).decode()
        assert line.startswith("listening on "), (line, (await process.stderr.read()).decode())
        yield line.split()[-1]
        process.send_signal(signal.SIGTERM)
        await process.communicate()
        assert process.returncode == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@asynccontextmanager
async def served(**emulated):
    """Run a bridge in front of an emulated gateway, and yield the gateway and the bridge's address."""
    async with (
        Emulator(**emulated) as emulator,
        listening("serve", "--listen", "127.0.0.1:0", "--upstream", emulator.url) as address,
    ):
        yield emulator, address
