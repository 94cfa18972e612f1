"""The bridge under torture, in a process of its own, and what the operating system and its admin port say of it."""

import asyncio
import contextlib
import os
import re
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import clean_environment, eventually, find_free_port
from tests.torture import counted
from tests.torture.counted import Counted

__all__ = ["Process", "bridge", "counting", "python"]

SERVE = ("-m", "bridge", "serve")
START_S_MAX = 30.0
STOP_S_MAX = 30.0
COUNT_S_MAX = 5.0
ADMIN_S_MAX = 5.0
_GRPCS_STACK = re.compile(
    r'^(Traceback \(most recent call last\):|  File "src/python/grpcio/.*|grpc\._cython\.\w+\.ExecuteBatchError: .*)\n',
    re.MULTILINE,
)
"""What grpc itself prints, past any setting of ours, where it can't tell one who has left that a method is unknown.

Lines of its core may come between, so each of these is known by itself.
"""
_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


@dataclass(eq=False)
class Process:
    """A running program. `address` is where it listens, `log` what it wrote on its standard error."""

    address: str
    process: asyncio.subprocess.Process
    log: Path
    admin: str = ""

    @property
    def alive(self) -> bool:
        return self.process.returncode is None

    @property
    def memory_mib(self) -> float:
        """Resident memory."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    @property
    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    @property
    def said(self) -> str:
        """What it wrote on its standard error, without the lines of stacks that lie within grpc."""
        return _GRPCS_STACK.sub("", self.log.read_text(encoding="utf-8", errors="replace"))

    async def counted(self, file: Path) -> Counted:
        """Give what it holds; it must be one of `counting`."""
        file.unlink(missing_ok=True)  # noqa: ASYNC240 - a tiny file
        self.process.send_signal(signal.SIGUSR1)
        await eventually(file.exists, COUNT_S_MAX)
        return counted.read(file)

    async def metrics(self) -> dict[tuple[str, str], float]:
        """Give the bridge's metrics by name and labels, the latter as the page writes them."""

        def page() -> str:
            with urllib.request.urlopen(f"http://{self.admin}/metrics", timeout=ADMIN_S_MAX) as answer:
                return answer.read().decode()

        found = _SAMPLE.findall(await asyncio.to_thread(page))
        return {(name, labels): float(value) for name, labels, value in found}

    async def ended(self) -> int:
        """Ask for the end, wait for it, and give the exit code."""
        if self.alive:
            self.process.terminate()
        async with asyncio.timeout(STOP_S_MAX):
            return await self.process.wait()


def counting(file: Path) -> tuple[str, ...]:
    """Give what Python is to run so that it becomes a bridge that writes on SIGUSR1 what it holds."""
    return ("-m", "tests.torture.counted", str(file))


@contextlib.asynccontextmanager
async def python(*command: str, log: Path, **environment: Any) -> AsyncIterator[Process]:
    """Run a Python program that says `listening on HOST:PORT` first; it is killed where the block leaves it running."""
    inherited = clean_environment()
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, *command),
            env=inherited | {name: str(value) for name, value in environment.items()},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
        )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_S_MAX):
            said = (await process.stdout.readline()).decode()
        if not said.startswith("listening on "):
            raise RuntimeError(f"expected {' '.join(command)} to listen, found {said!r}; {log} has more")
        yield Process(said.removeprefix("listening on ").strip(), process, log)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@contextlib.asynccontextmanager
async def bridge(
    upstream: str, *, folder: Path, command: Sequence[str] = SERVE, log: Path | None = None, **settings: Any
) -> AsyncIterator[Process]:
    """Run a bridge before an upstream at HOST:PORT, with settings named as in the environment.

    `command` is what Python runs in place of `-m bridge serve`, `log` where its standard error goes.
    """
    admin = f"127.0.0.1:{find_free_port()}"  # the bridge says where it takes calls, not where it shows this
    environment = {f"OLLM_BRIDGE_{name.upper()}": value for name, value in settings.items()}
    environment |= {
        "OLLM_BRIDGE_LISTEN": "127.0.0.1:0",
        "OLLM_BRIDGE_ADMIN_LISTEN": admin,
        "OLLM_BRIDGE_UPSTREAM__BASE_URL": f"http://{upstream}",
    }
    async with python(*command, log=log or folder / "bridge.log", **environment) as process:
        process.admin = admin
        yield process
