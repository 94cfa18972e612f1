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

from tests.conftest import WAIT_S, Bridge, clean_environment


class Process(Bridge):
    """A bridge and its process. `log_lines` are the lines of its standard error so far."""

    process: asyncio.subprocess.Process
    log_lines: list[str]
    log_reader: asyncio.Task[None]

    @property
    def log(self) -> str:
        return "\n".join(self.log_lines)

    async def wait_for_exit(self) -> int:
        """Wait until the process has ended, and return the exit code."""
        async with asyncio.timeout(WAIT_S):
            await self.log_reader
            return await self.process.wait()


SERVE = ("-m", "bridge", "serve")


@contextlib.asynccontextmanager
async def start_bridge_process(emulator, command: Sequence[str] = SERVE, **settings: Any) -> AsyncIterator[Process]:
    """Run `python -m bridge serve`, or another program that serves, with settings named as in the environment."""
    environment = clean_environment()
    environment |= {"OLLM_BRIDGE_ADMIN_LISTEN": "127.0.0.1:0"}
    environment |= {"OLLM_BRIDGE_LISTEN": "127.0.0.1:0", "OLLM_BRIDGE_UPSTREAM__BASE_URL": emulator.url}
    environment |= {f"OLLM_BRIDGE_{name.upper()}": str(value) for name, value in settings.items()}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *command),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    log_lines: list[str] = []
    log_reader = asyncio.create_task(_read_log(process, log_lines))
    try:
        address = (await process.stdout.readline()).decode().removeprefix("listening on ").strip()
        if not address:
            await log_reader
            pytest.fail("\n".join(log_lines))
        async with grpc.aio.insecure_channel(address) as channel:
            bridge = Process(address, channel)
            bridge.process, bridge.log_lines, bridge.log_reader = process, log_lines, log_reader
            yield bridge
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        log_reader.cancel()
        await asyncio.wait([log_reader])
        await process.communicate()


async def _read_log(process: asyncio.subprocess.Process, lines: list[str]) -> None:
    """Read the log all the time: a full pipe would stop the process."""
    while line := await process.stderr.readline():
        lines.append(line.decode().rstrip("\n"))


def find_children(pid: int, word: bytes) -> list[int]:
    """Return the process ids of a process's children whose command line has a word."""
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


def describe_missing_namespaces() -> str:
    """Return why a process can't have a mount namespace of its own here; an empty text if it can."""
    if shutil.which("unshare") is None:
        return "there is no `unshare` (Linux, util-linux)"
    trial = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False)
    return "" if trial.returncode == 0 else "this kernel allows no user namespaces"
