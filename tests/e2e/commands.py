"""Commands of `ollm-bridge`, run as processes."""

import asyncio
import os
import signal
import sys
from contextlib import asynccontextmanager


def start_command(*arguments, stdout=asyncio.subprocess.PIPE, **environ):
    """Start a command, without the settings and keys of this environment."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OLLM_", "PYTEST"))}
    return asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "bridge", *arguments),
        stdout=stdout,
        stderr=asyncio.subprocess.PIPE,
        env=inherited | {"OLLM_BRIDGE_ADMIN_LISTEN": "127.0.0.1:0"} | environ,
    )


async def run_command(*arguments, **environ):
    """Run a command to its end, and return its exit code, output and errors."""
    process = await start_command(*arguments, **environ)
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


@asynccontextmanager
async def run_listener(*arguments, **environ):
    """Run a command that listens, and yield its address; it must end with 0 on SIGTERM."""
    process = await start_command(*arguments, **environ)
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
