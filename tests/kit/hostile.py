"""Hostile clients over raw sockets, and what must hold of the bridge that they met.

A `Target` is a bridge in a process of its own. After an attack a stock client's call must succeed, over its old
connection and over a new one; the process runs; its log has nothing but lines of calls; and open files and memory are
freed, measured from the second attack of a kind on: the first one warms allocators up.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import grpc

from bridge.emulator import Emulator, Exchange
from tests.kit.bridges import Process, start_bridge_process
from tests.kit.client import Bridge
from tests.kit.health import GOOD_MODEL, answer_good_call, is_expected
from tests.kit.proc import count_descriptors, read_resident_bytes
from tests.kit.waiting import WAIT_S, eventually

__all__ = ["ATTACKS_MAX", "MIB", "Cost", "Target", "connect", "hold_connections", "send_what_fits", "start_target"]

MIB: Final = 1024 * 1024
GROWTH_BYTES_MAX: Final = 30 * MIB
"""Growth of the resident set from one attack to the next of its kind, which allocators may keep in their arenas."""
ATTACKS_MAX: Final = 12
"""How often an attack is made before its growth is called a leak.

grpc's core takes calls up faster than Python ends them. How many of a flood are open at once differs, and so the
resident set may reach new heights a few times before it stays.
"""
FREED_S: Final = 5.0
"""How long the end of an attack's work is waited for; what ends later is waited for after the next attack."""
FILES_GROWTH_MAX: Final = 8
"""Growth of the number of open files: grpc's own pollers open and close some."""


class Cost(NamedTuple):
    """The memory and open files of a process; zeros if there is no /proc."""

    resident_bytes: int
    files: int


@dataclass(eq=False)
class Target:
    """The bridge and its upstream."""

    emulator: Emulator
    bridge: Process
    freed_s: float = FREED_S

    @property
    def log_lines(self) -> list[str]:
        return self.bridge.log_lines

    @property
    def address(self) -> str:
        return self.bridge.address

    @property
    def is_running(self) -> bool:
        return self.bridge.process.returncode is None

    @property
    def cost(self) -> Cost:
        pid = self.bridge.process.pid
        try:
            return Cost(read_resident_bytes(pid), count_descriptors(pid))
        except OSError:
            return Cost(0, 0)

    @property
    def is_clean(self) -> bool:
        """Whether the upstream received only printable headers, and none that a value smuggled in."""
        headers = (header for exchange in self.emulator.exchanges for header in exchange.headers.items())
        return all(
            name != "x-smuggled" and value.isascii() and value.isprintable() and "smuggled" not in value
            for name, value in headers
        )

    async def next_exchange(self) -> Exchange:
        """Return the next exchange that was not forgotten and is not of a good call."""
        while True:
            exchange = await self.emulator.next_exchange(WAIT_S)
            if any(each is exchange for each in self.emulator.exchanges) and exchange.json["model"] != GOOD_MODEL:
                return exchange

    def list_reasons(self) -> list[str]:
        return [record.get("reason", "") for record in self.bridge.calls]

    def forget(self) -> None:
        """Forget the exchanges and log lines of the attacks before."""
        self.emulator.exchanges.clear()
        self.log_lines.clear()

    async def check_service(self) -> set[str]:
        """Make a call over the open connection and one over a new one, and return their request ids."""
        first = await answer_good_call(self.bridge)
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(self.address, options=options) as channel:
            return {first, await answer_good_call(Bridge(self.address, channel))}

    async def check_service_and_log(self) -> None:
        """Make these calls, and wait for their lines: then the log has all earlier ones."""
        ids = await self.check_service()
        await eventually(lambda: ids <= {record.get("request_id") for record in self.bridge.calls})

    async def check_unharmed(self) -> None:
        await self.check_service_and_log()
        assert self.is_running
        unexpected = [line for line in self.log_lines if not is_expected(line)]
        assert not unexpected, "\n".join(unexpected)

    async def check_cost_freed(self, attack: Callable[[], Awaitable[None]]) -> None:
        """Repeat an attack until one leaves no more memory behind than there was before it, and no open files.

        What allocators keep depends on how much ran at once, so an attack may leave more; a leak does each time.
        """
        start = before = self.cost
        await attack()
        for _ in range(ATTACKS_MAX):
            await self.check_unharmed()
            before = self.cost
            await attack()
            await self.check_unharmed()
            with contextlib.suppress(TimeoutError):
                await eventually(lambda: self._is_freed(before.resident_bytes, start.files), self.freed_s)  # noqa: B023
                return
        growth = self.cost.resident_bytes - before.resident_bytes
        files = self.cost.files - start.files
        raise AssertionError(f"{growth / MIB:.0f} MiB and {files} files are not freed, {ATTACKS_MAX} times in a row")

    def _is_freed(self, resident_bytes: int, files: int) -> bool:
        cost = self.cost
        return cost.resident_bytes - resident_bytes < GROWTH_BYTES_MAX and cost.files - files <= FILES_GROWTH_MAX


@contextlib.asynccontextmanager
async def start_target(emulator: Emulator, **settings: Any) -> AsyncIterator[Target]:
    """Run a bridge that has answered its first call, and refuses none of an attack for the number of its calls."""
    limits = {"calls_max": 5000, "calls_per_caller_max": 5000}
    async with start_bridge_process(emulator, **limits, upstream__keepalive_s=0, **settings) as bridge:
        target = Target(emulator, bridge)
        await target.check_service_and_log()
        yield target


async def connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    connected = socket.socket()
    connected.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connected, (host, int(port)))
    return connected


async def send_what_fits(connected: socket.socket, payload: bytes, *, timeout_s: float = WAIT_S) -> None:
    """Send as many of these bytes as the server reads within this time."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(timeout_s):
            await asyncio.get_running_loop().sock_sendall(connected, payload)


@contextlib.asynccontextmanager
async def hold_connections(
    address: str, payload: bytes, connections: int = 1, *, timeout_s: float = WAIT_S
) -> AsyncIterator[list[socket.socket]]:
    """Send this over so many connections, read nothing, and keep them open while the block lasts.

    `timeout_s` bounds the sending: a server may read on no more.
    """
    sockets: list[socket.socket] = []
    try:
        for _ in range(connections):
            sockets.append(await connect(address))  # noqa: PERF401 - those already open are closed in any case
        await asyncio.gather(*(send_what_fits(each, payload, timeout_s=timeout_s) for each in sockets))
        yield sockets
    finally:
        for each in sockets:
            each.close()
