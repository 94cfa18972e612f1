"""The bridge under attack, in a process of its own, and what the operating system and its admin port report of it."""

import asyncio
import contextlib
import re
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.torture import holdings
from lab.torture.holdings import Holdings
from tests.kit.bridges import SERVER_ENGINE
from tests.kit.proc import count_descriptors, read_resident_bytes
from tests.kit.processes import clean_environment, find_free_port, read_address, start_program_async
from tests.kit.waiting import eventually

__all__ = ["Process", "build_holdings_command", "run_bridge", "run_python"]

SERVE = ("-m", "bridge", "serve")
STOP_S_MAX = 30.0
HOLDINGS_S_MAX = 5.0
ADMIN_S_MAX = 5.0
_GRPCS_STACK = re.compile(
    r'^(Traceback \(most recent call last\):|  File "src/python/grpcio/.*|grpc\._cython\.\w+\.ExecuteBatchError: .*)\n',
    re.MULTILINE,
)
"""What grpc itself prints, past any setting of ours, if it can't tell a client that has disconnected that a method is
unknown.

Lines of its core may come between, so each of these is matched by itself.
"""
_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


@dataclass(eq=False)
class Process:
    """A running program. `address` is where it listens, `log` is its standard error."""

    address: str
    process: asyncio.subprocess.Process
    log: Path
    admin: str = ""

    @property
    def is_alive(self) -> bool:
        return self.process.returncode is None

    @property
    def memory_mib(self) -> float:
        """Resident memory."""
        return read_resident_bytes(self.process.pid) / 2**20

    @property
    def descriptors(self) -> int:
        return count_descriptors(self.process.pid)

    @property
    def log_text(self) -> str:
        """Its standard error, without the lines of stacks within grpc."""
        return _GRPCS_STACK.sub("", self.log.read_text(encoding="utf-8", errors="replace"))

    async def read_holdings(self, file: Path) -> Holdings:
        """Return what it holds; it must run `build_holdings_command`."""
        file.unlink(missing_ok=True)  # noqa: ASYNC240 - a tiny file
        self.process.send_signal(signal.SIGUSR1)
        await eventually(file.exists, HOLDINGS_S_MAX)
        return holdings.read(file)

    async def read_metrics(self) -> dict[tuple[str, str], float]:
        """Return the bridge's metrics by name and labels, the latter as the page writes them."""

        def fetch_page() -> str:
            with urllib.request.urlopen(f"http://{self.admin}/metrics", timeout=ADMIN_S_MAX) as answer:
                return answer.read().decode()

        samples = _SAMPLE.findall(await asyncio.to_thread(fetch_page))
        return {(name, labels): float(value) for name, labels, value in samples}

    async def stop(self) -> int:
        """Terminate it, wait for its end, and return the exit code."""
        if self.is_alive:
            self.process.terminate()
        async with asyncio.timeout(STOP_S_MAX):
            return await self.process.wait()


def build_holdings_command(file: Path) -> tuple[str, ...]:
    """Return the arguments with which Python runs a bridge that writes on SIGUSR1 what it holds."""
    return ("-m", "lab.torture.holdings", str(file))


@contextlib.asynccontextmanager
async def run_python(*command: str, log: Path, **environment: Any) -> AsyncIterator[Process]:
    """Run a Python program that prints `listening on HOST:PORT` first; it is killed if the block leaves it running."""
    variables = clean_environment() | {name: str(value) for name, value in environment.items()}
    with log.open("wb") as errors:
        async with start_program_async(sys.executable, *command, environment=variables, stderr=errors) as process:
            yield Process(await read_address(process), process, log)


@contextlib.asynccontextmanager
async def run_bridge(
    upstream: str, *, folder: Path, command: Sequence[str] = SERVE, log: Path | None = None, **settings: Any
) -> AsyncIterator[Process]:
    """Run a bridge in front of an upstream at HOST:PORT, with settings named as in the environment.

    Python runs `command` in place of `-m bridge serve`. `log` takes its standard error.
    """
    admin = f"127.0.0.1:{find_free_port()}"  # the bridge prints the address of its calls only
    environment = {
        "OLLM_BRIDGE_LISTEN": "127.0.0.1:0",
        "OLLM_BRIDGE_SERVER__ENGINE": SERVER_ENGINE,
        "OLLM_BRIDGE_ADMIN_LISTEN": admin,
        "OLLM_BRIDGE_UPSTREAM__BASE_URL": f"http://{upstream}",
        **{f"OLLM_BRIDGE_{name.upper()}": value for name, value in settings.items()},
    }
    async with run_python(*command, log=log or folder / "bridge.log", **environment) as process:
        process.admin = admin
        yield process
