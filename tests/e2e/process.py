"""A bridge in a process of its own, as operators run it."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from tests.conftest import Bridge


class Process(Bridge):
    """A bridge and its process. `log` is all that it wrote, once it has ended."""

    process: asyncio.subprocess.Process
    log: str = ""

    async def ended(self) -> int:
        """Wait for the end and give the exit code."""
        async with asyncio.timeout(10):
            self.log = (await self.process.stderr.read()).decode()
            return await self.process.wait()


@contextlib.asynccontextmanager
async def served(emulator, **settings: Any) -> AsyncIterator[Process]:
    """Run `python -m bridge serve` with these settings, named as in the environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OLLM_BRIDGE_")}
    environment |= {"OLLM_BRIDGE_ADMIN_LISTEN": "127.0.0.1:0"}
    environment |= {"OLLM_BRIDGE_LISTEN": "127.0.0.1:0", "OLLM_BRIDGE_UPSTREAM__BASE_URL": emulator.url}
    environment |= {f"OLLM_BRIDGE_{name.upper()}": str(value) for name, value in settings.items()}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bridge", "serve"),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        address = (await process.stdout.readline()).decode().removeprefix("listening on ").strip()
        assert address, await process.stderr.read()
        async with grpc.aio.insecure_channel(address) as channel:
            bridge = Process(address, channel)
            bridge.process = process
            yield bridge
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


def children(pid: int, word: bytes) -> list[int]:
    """Give a process's children whose command line has a word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
            command = (path.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == pid and word in command:
            found.append(int(path.parent.name))
    return found
