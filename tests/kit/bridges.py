"""Bridges with a client each: in this process and loop, or in a process of its own, as operators run it."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, Protocol

import grpc

from bridge.server.server import open_server
from bridge.settings import Settings
from tests.kit.certificates import ca_file
from tests.kit.client import Bridge, Records
from tests.kit.processes import BRIDGE, LAG_MS_MAX, build_bridge_environment, read_addresses, start_program_async
from tests.kit.waiting import WAIT_S

__all__ = ["SERVE", "SERVER_ENGINE", "Process", "start_bridge_here", "start_bridge_process"]

SERVE: Final = (*BRIDGE, "serve")
SERVER_ENGINE: Final = os.environ.get("TEST_SERVER_ENGINE", "native")
"""Which engine of the call port is tested: `native` or `grpcio`."""


@contextlib.asynccontextmanager
async def start_bridge_here(*, channel: dict[str, Any] | None = None, **settings: Any) -> AsyncIterator[Bridge]:
    """Run a bridge in this loop, with a client whose channel has these options."""
    defaults = {
        "listen": "127.0.0.1:0",
        "drain_grace_s": 0,
        "server": {"engine": SERVER_ENGINE},
        "lag_max_ms": LAG_MS_MAX,
    }
    settings["upstream"] = {"ca_file": ca_file()} | settings.get("upstream", {})
    records = Records()
    async with (
        open_server(Settings(**defaults | settings), [records], stop_hold_s=0) as server,
        grpc.aio.insecure_channel(server.address, options=tuple((channel or {}).items())) as client,
    ):
        yield Bridge(server.address, client, records, server.web_address)


class Upstream(Protocol):
    """An emulator, or any other upstream that knows its URL."""

    @property
    def url(self) -> str: ...


class Process(Bridge):
    """A bridge and its process. `log_lines` are the lines of its standard error so far."""

    admin_address: str
    process: asyncio.subprocess.Process
    log_lines: list[str]
    log_reader: asyncio.Task[None]

    @property
    def log(self) -> str:
        return "\n".join(self.log_lines)

    @property
    def calls(self) -> list[dict[str, Any]]:
        """The lines of calls so far."""
        records = [json.loads(line) for line in self.log_lines if line.startswith("{")]
        return [record for record in records if record["event"] == "call"]

    async def wait_for_exit(self) -> int:
        """Wait until the process has ended, and return the exit code."""
        async with asyncio.timeout(WAIT_S):
            await self.log_reader
            return await self.process.wait()


@contextlib.asynccontextmanager
async def start_bridge_process(
    upstream: Upstream, command: Sequence[str] = SERVE, *, stderr: int = asyncio.subprocess.PIPE, **settings: Any
) -> AsyncIterator[Process]:
    """Run `serve`, or another program that serves, in front of an upstream, with settings by their names."""
    defaults = {"upstream__ca_file": ca_file(), "server__engine": SERVER_ENGINE}
    environment = build_bridge_environment(upstream.url, **defaults | settings)
    async with start_program_async(*command, environment=environment, stderr=stderr) as process:
        addresses = await read_addresses(process)
        log_lines: list[str] = []
        async with grpc.aio.insecure_channel(addresses.calls) as channel:
            bridge = Process(addresses.calls, channel, web_address=addresses.web)
            bridge.admin_address = addresses.admin
            bridge.process, bridge.log_lines = process, log_lines
            bridge.log_reader = asyncio.create_task(_read_log(process, log_lines))
            try:
                yield bridge
            finally:
                bridge.log_reader.cancel()
                await asyncio.wait([bridge.log_reader])


async def _read_log(process: asyncio.subprocess.Process, lines: list[str]) -> None:
    """Read the log all the time: a full pipe would stop the process."""
    while process.stderr is not None and (line := await process.stderr.readline()):
        lines.append(line.decode().rstrip("\n"))
