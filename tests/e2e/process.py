"""A bridge in a process of its own, as operators run it."""

import asyncio
import contextlib
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.conftest import Bridge, without_settings


class Process(Bridge):
    """A bridge and its process. `said` are the lines of its standard error so far."""

    process: asyncio.subprocess.Process
    said: list[str]
    listening: asyncio.Task[None]

    @property
    def log(self) -> str:
        return "\n".join(self.said)

    async def ended(self) -> int:
        """Wait for the end and give the exit code."""
        async with asyncio.timeout(10):
            await self.listening
            return await self.process.wait()


SERVE = ("-m", "bridge", "serve")


@contextlib.asynccontextmanager
async def served(emulator, command: Sequence[str] = SERVE, **settings: Any) -> AsyncIterator[Process]:
    """Run `python -m bridge serve`, or another program that serves, with settings named as in the environment."""
    environment = without_settings()
    environment |= {"OLLM_BRIDGE_ADMIN_LISTEN": "127.0.0.1:0"}
    environment |= {"OLLM_BRIDGE_LISTEN": "127.0.0.1:0", "OLLM_BRIDGE_UPSTREAM__BASE_URL": emulator.url}
    environment |= {f"OLLM_BRIDGE_{name.upper()}": str(value) for name, value in settings.items()}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *command),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said: list[str] = []
    listening = asyncio.create_task(_listen(process, said))
    try:
        address = (await process.stdout.readline()).decode().removeprefix("listening on ").strip()
        if not address:
            await listening
            pytest.fail("\n".join(said))
        async with grpc.aio.insecure_channel(address) as channel:
            bridge = Process(address, channel)
            bridge.process, bridge.said, bridge.listening = process, said, listening
            yield bridge
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        listening.cancel()
        await asyncio.wait([listening])
        await process.communicate()


async def _listen(process: asyncio.subprocess.Process, said: list[str]) -> None:
    """Read the log as it comes: a full pipe would stop the process."""
    while line := await process.stderr.readline():
        said.append(line.decode().rstrip("\n"))


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


def no_namespaces() -> str:
    """Say why a process can't have a mount namespace of its own here; nothing where it can."""
    if shutil.which("unshare") is None:
        return "there is no `unshare` (Linux, util-linux)"
    trial = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False)
    return "" if trial.returncode == 0 else "this kernel gives no user namespaces"
