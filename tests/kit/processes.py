"""Programs in processes of their own: run one to its end, or start one that says `listening on HOST:PORT`.

It needs the standard library alone, since the tests of deploy/ run without what the bridge needs. Nothing of a caller's
shell that would configure a bridge reaches a program, and none outlives the block that started it.
"""

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

__all__ = [
    "BRIDGE",
    "LAG_MS_MAX",
    "ROOT",
    "Addresses",
    "Ended",
    "Program",
    "StartError",
    "build_bridge_environment",
    "build_command_environment",
    "build_source_environment",
    "clean_environment",
    "describe_missing_namespaces",
    "find_free_port",
    "find_program",
    "has_ipv6",
    "hold_closed_port",
    "read_address",
    "read_addresses",
    "run_joined",
    "run_program",
    "run_program_async",
    "start_command",
    "start_program",
    "start_program_async",
]

ROOT: Final = Path(__file__).parents[2]
BRIDGE: Final = (sys.executable, "-m", "bridge")
START_S_MAX: Final = 90.0
STOP_S_MAX: Final = 20.0
LAG_MS_MAX: Final = 60_000
"""On a busy machine an event loop is late, and calls would be refused for it."""
_LISTENING: Final = "listening on "
_ANY_PORT: Final = "127.0.0.1:0"
_PORTS: Final = range(16_000, 32_000)
"""Below those that systems give to connections and to servers at any port, of which tests beside this one open many."""


class StartError(Exception):
    """A program ended, or took too long, before it listened."""


def clean_environment() -> dict[str, str]:
    """Return the environment without settings and keys of the bridge, and without git's."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("OLLM_", "PYTEST", "GIT_"))}


def build_source_environment() -> dict[str, str]:
    """Return the environment of a program that imports the bridge and lies in no package."""
    return clean_environment() | {"PYTHONPATH": f"{ROOT}:{ROOT / 'generated'}"}


def build_bridge_environment(upstream: str, **settings: Any) -> dict[str, str]:
    """Return the environment of a bridge in front of an upstream's URL, at any port, with settings by their names."""
    defaults = {
        "listen": _ANY_PORT,
        "admin_listen": _ANY_PORT,
        "upstream__base_url": upstream,
        "lag_max_ms": LAG_MS_MAX,
    }
    values = {f"OLLM_BRIDGE_{name.upper()}": str(value) for name, value in (defaults | settings).items()}
    return clean_environment() | values


def find_free_port() -> int:
    """Return a port that was free a moment ago: for a server that can't choose one itself."""
    while True:
        port = secrets.choice(_PORTS)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def has_ipv6() -> bool:
    """Return whether this machine has the loopback address of IPv6."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


@contextlib.contextmanager
def hold_closed_port() -> Iterator[int]:
    """Yield a port that refuses connections: it is bound, so that nobody else takes it, and never listens."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        yield closed.getsockname()[1]


def find_program(program: str) -> str | None:
    """Return the path of a program: beside the interpreter, by PATH, or where Debian and Go put theirs; else None."""
    folders = (str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/go/bin")
    return shutil.which(program, path=os.pathsep.join(folders))


def describe_missing_namespaces() -> str:
    """Return why a process can't have a mount namespace of its own here; an empty text if it can."""
    if shutil.which("unshare") is None:
        return "there is no `unshare` (Linux, util-linux)"
    return "this kernel allows no user namespaces" if run_program("unshare", "-rm", "true").code else ""


# To the end


class Ended(NamedTuple):
    """A program that has ended: its exit code, its output and its errors."""

    code: int
    out: str
    err: str


def run_program(
    *command: str | Path, timeout_s: float = 60, environment: Mapping[str, str] | None = None, **options: Any
) -> Ended:
    """Run a program to its end. `environment` is all of it, `options` are subprocess.run's."""
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    done = subprocess.run(
        command,
        check=False,
        env=environment or clean_environment(),
        encoding="utf-8",
        timeout=timeout_s,
        **options,
    )
    return Ended(done.returncode, done.stdout or "", done.stderr or "")


async def run_program_async(*command: str | Path, **options: Any) -> Ended:
    """Run a program to its end while this loop goes on."""
    return await asyncio.to_thread(run_program, *command, **options)


def build_command_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a command of `ollm-bridge`, with an admin port of its own."""
    return clean_environment() | {"OLLM_BRIDGE_ADMIN_LISTEN": _ANY_PORT, **variables}


async def run_joined(
    *command: str | Path, timeout_s: float, environment: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run a program in the project's folder to its end, or until it is cancelled, which kills it.

    Return its exit code, and output and errors as they came. Raises TimeoutError.
    """
    options = {"cwd": ROOT, "stderr": asyncio.subprocess.STDOUT}
    async with start_program_async(*command, environment=environment, **options) as process:
        async with asyncio.timeout(timeout_s):
            output, _ = await process.communicate()
        return process.returncode or 0, output.decode("utf-8", "replace")


# While a block lasts


@contextlib.asynccontextmanager
async def start_program_async(
    *command: str | Path, environment: Mapping[str, str] | None = None, **options: Any
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a program while the block lasts. `environment` is all of it, `options` are asyncio's."""
    options = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE} | options
    process = await asyncio.create_subprocess_exec(
        *command, env=environment or clean_environment(), stdin=asyncio.subprocess.DEVNULL, **options
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


class Addresses(NamedTuple):
    """Where a program listens; `web` and `admin` are "" without such a port."""

    calls: str
    web: str
    admin: str


async def read_address(process: asyncio.subprocess.Process) -> str:
    """Wait until a program says where it listens."""
    return (await read_addresses(process)).calls


async def read_addresses(process: asyncio.subprocess.Process) -> Addresses:
    """Wait until a program says where it listens, and return its other addresses too."""
    assert process.stdout is not None
    async with asyncio.timeout(START_S_MAX):
        line = (await process.stdout.readline()).decode()
        if not line.startswith(_LISTENING):
            errors = (await process.stderr.read()).decode() if process.stderr else ""
            raise StartError(f"expected a program that listens, found {line!r}:\n{errors[-4000:]}")
    return Addresses(_parse_address(line), _find_address(line, "web"), _find_address(line, "page"))


@contextlib.asynccontextmanager
async def start_command(*arguments: str, **environment: str) -> AsyncIterator[str]:
    """Run a command of `ollm-bridge` that listens, and yield its address; it must end with 0 on SIGTERM."""
    async with start_program_async(*BRIDGE, *arguments, environment=build_command_environment(environment)) as process:
        yield await read_address(process)
        process.terminate()
        await process.communicate()
        assert process.returncode == 0


@dataclass(frozen=True)
class Program:
    """A running program, and where it listens. `log` is its standard error."""

    address: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid


@contextlib.contextmanager
def start_program(
    *command: str | Path,
    log: Path,
    environment: Mapping[str, str] | None = None,
    directory: Path = ROOT,
    port: int | None = None,
) -> Iterator[Program]:
    """Run a program while the block lasts, then terminate it. `port` is set if the caller chose it.

    Raises StartError, with the end of the log, if it does not listen.
    """
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            command,
            env=environment or clean_environment(),
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if port is None else errors,
            stderr=errors,
        ) as process,
    ):
        try:
            address = _read_address(process) if port is None else _wait_for_port(process, port)
            if not address:
                words = " ".join(map(str, command[:4]))
                raise StartError(f"expected {words} to listen, found:\n{log.read_text(errors='replace')[-4000:]}")
            yield Program(address, process, log)
        finally:
            process.terminate()
            try:
                process.wait(STOP_S_MAX)
            except subprocess.TimeoutExpired:
                process.kill()


def _read_address(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().decode()
    return _parse_address(line) if line.startswith(_LISTENING) else ""


def _parse_address(line: str) -> str:
    """Return the address, without what the program says of itself behind it, in parentheses."""
    return line.removeprefix(_LISTENING).partition(" (")[0].strip()


def _find_address(line: str, port: str) -> str:
    """Return the address of the port that the program calls so behind its own address."""
    found = re.search(rf"\b{port} https?://([^/]+)/", line)
    return found[1] if found else ""


def _wait_for_port(process: subprocess.Popen[bytes], port: int) -> str:
    end = time.monotonic() + START_S_MAX
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return f"127.0.0.1:{port}"
        time.sleep(0.02)
    return ""
