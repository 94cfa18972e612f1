"""Attacks on the HTTP/2 server under the bridge: bad frames, heads, messages and floods, over raw sockets.

On grpcio nothing of ours reads these bytes, so this is no part of `make test`; it runs on both engines in CI's longer
part, and before the pin of grpcio is raised. `attack_bytes.py` has the bytes. After each attack the bridge must be
unharmed (`tests/kit/hostile.py`); if one ends its process, the next one meets another.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from bridge.emulator import Emulator
from lab.report import Result
from lab.torture import attack_bytes
from lab.torture.attack_bytes import MESSAGE, PING_AT_THE_END, Flood
from lab.torture.options import Options
from tests.kit.bridges import SERVER_ENGINE
from tests.kit.hostile import Target, connect, hold_connections, send_what_fits, start_target
from tests.kit.http2 import OPENING, encode_call, exchange_bytes, find_goaway, find_reset, parse_grpc_status
from tests.kit.upstreams import reset_on_close
from tests.kit.waiting import eventually

__all__ = ["ATTACKS", "CROWD", "Attack", "attack_all", "run"]

Attack = Callable[[Target, Any], Awaitable[None]]
"""Raises AssertionError, OSError or TimeoutError if the bridge is harmed."""
ANSWER_S_MAX = 30.0
SENDING_S_MAX = 1.0
"""A bridge that has enough of an attack may read on no more."""
RESETS = 500
CROWD = 20
LARGE_HEADS = 4
GOOD_CALLS = 2


async def run(options: Options) -> list[Result]:
    """Run all attacks; a quick run is no shorter."""
    async with Emulator() as emulator, contextlib.AsyncExitStack() as stack:
        targets: list[Target] = []
        results = []
        for title, (attack, cases) in ATTACKS.items():
            results.append(await attack_all(title, attack, cases, lambda: find_target(emulator, stack, targets)))
        return results


async def find_target(emulator: Emulator, stack: contextlib.AsyncExitStack, targets: list[Target]) -> Target:
    """Return the running bridge, or start another."""
    if not targets or not targets[-1].is_running:
        targets.append(await stack.enter_async_context(start_target(emulator)))
    targets[-1].forget()
    return targets[-1]


async def attack_all(
    title: str, attack: Attack, cases: Mapping[str, Any], find: Callable[[], Awaitable[Target]]
) -> Result:
    """Make an attack with each case's bytes."""
    wrong = []
    for name, case in cases.items():
        target = await find()
        try:
            await attack(target, case)
        except (AssertionError, OSError, TimeoutError) as error:
            what = (str(error) or type(error).__name__).splitlines()[0]
            wrong.append(f"{name}: {what if target.is_running else 'the process ended'}")
    return Result(title, len(cases), "; ".join(wrong[:5]) or "refused or answered, and no other call harmed", not wrong)


async def check_refused(target: Target, payload: bytes) -> None:
    """No status is OK, and nothing reaches the upstream."""
    answer = await exchange_bytes(target.address, payload + PING_AT_THE_END)
    assert parse_grpc_status(answer) != 0, "the call is OK"
    # Open, since a call is cancelled with its connection.
    async with hold_connections(target.address, payload, timeout_s=SENDING_S_MAX):
        await target.check_unharmed()
    assert len(target.emulator.exchanges) == GOOD_CALLS, "the upstream was called"


def was_cut_off(answer: bytes) -> bool:
    """Return whether the native engine reset a stream or ended the connection, as RFC 9113 has it, or said 415.

    grpc.aio answers those with a status.
    """
    codes = (find_goaway(answer), find_reset(answer))
    return SERVER_ENGINE == "native" and (any(codes) or b"\x03415" in answer)


async def check_answered(target: Target, payload: bytes) -> None:
    """A status comes, and the upstream is called once at most, by clean headers."""
    answer = await exchange_bytes(target.address, payload)
    assert parse_grpc_status(answer) is not None or was_cut_off(answer), "no status came"
    assert len(target.emulator.exchanges) <= 1, "the upstream was called twice"
    assert target.is_clean, "a header was smuggled to the upstream"
    await target.check_unharmed()


async def check_failed(target: Target, payload: bytes) -> None:
    """A status comes that is not OK, and nothing reaches the upstream."""
    answer = await exchange_bytes(target.address, payload)
    assert parse_grpc_status(answer) not in {0, None} or was_cut_off(answer), "no failure came"
    await target.check_unharmed()
    assert len(target.emulator.exchanges) == GOOD_CALLS, "the upstream was called"


async def check_flood_freed(target: Target, flood: Flood) -> None:
    """Others are served beside the flood, and afterwards its memory and files are free."""

    async def attack() -> None:
        async with hold_connections(target.address, flood.payload, flood.connections, timeout_s=SENDING_S_MAX):
            await target.check_service()
        await target.check_service()

    await target.check_cost_freed(attack)
    await eventually(lambda: all(each.finished or each.closed_at for each in target.emulator.exchanges))


async def check_heads_freed(target: Target, payload: bytes) -> None:
    async def attack() -> None:
        for _ in range(LARGE_HEADS):
            answers = await asyncio.gather(*(exchange_bytes(target.address, payload) for _ in range(5)))
            failed = [parse_grpc_status(answer) not in {0, None} or was_cut_off(answer) for answer in answers]
            assert all(failed), "no failure came"

    await target.check_cost_freed(attack)
    assert target.is_clean, "a header was smuggled to the upstream"


async def check_resets_freed(target: Target, payload: bytes) -> None:
    """Each connection is reset as soon as the payload is sent."""

    async def attack() -> None:
        for _ in range(RESETS):
            connected = await connect(target.address)
            reset_on_close(connected)
            await send_what_fits(connected, payload, timeout_s=SENDING_S_MAX)
            connected.close()
        await target.check_service()

    await target.check_cost_freed(attack)


async def check_crowd_freed(target: Target, payloads: list[bytes]) -> None:
    """All these connections at once, five of each."""

    async def attack() -> None:
        async with contextlib.AsyncExitStack() as stack:
            for payload in payloads:
                await stack.enter_async_context(hold_connections(target.address, payload, 5, timeout_s=SENDING_S_MAX))
            await target.check_service()

    await target.check_cost_freed(attack)
    assert target.is_clean, "a header was smuggled to the upstream"


async def check_slow_senders(target: Target, payload: bytes) -> None:
    """Calls that are sent byte by byte are answered, and others beside them."""
    async with open_crowd(target.address) as crowd:
        for at in range(len(payload)):
            for connected in crowd:
                await send_what_fits(connected, payload[at : at + 1])
            if at % 100 == 0:
                await target.check_service()
        for connected in crowd:
            assert await receive_status(connected) == 0, "a call failed"
    await target.check_unharmed()


@contextlib.asynccontextmanager
async def open_crowd(address: str) -> AsyncIterator[list[socket.socket]]:
    async with hold_connections(address, b"", CROWD) as crowd:
        for connected in crowd:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield crowd


async def receive_status(connected: socket.socket) -> int | None:
    answer = b""
    async with asyncio.timeout(ANSWER_S_MAX):
        while parse_grpc_status(answer) is None:
            answer += await asyncio.get_running_loop().sock_recv(connected, 65_536)
    return parse_grpc_status(answer)


_EVERYTHING = (
    attack_bytes.NO_HTTP2 | attack_bytes.BAD_FRAMES | attack_bytes.BAD_MESSAGES | attack_bytes.HARMLESS
).values()
_SERVED = {"no :authority"} if SERVER_ENGINE == "native" else set()
"""Calls that grpc's core refuses, and RFC 9113 does not (8.3.1)."""
_BAD_HEADERS = {name: payload for name, payload in attack_bytes.BAD_HEADERS.items() if name not in _SERVED}
_CALL = OPENING + encode_call(MESSAGE)

ATTACKS: Mapping[str, tuple[Attack, Mapping[str, Any]]] = {
    "bytes that are no HTTP/2": (check_refused, attack_bytes.NO_HTTP2),
    "frames against RFC 9113": (check_refused, attack_bytes.BAD_FRAMES),
    "header blocks and fields against RFC 7541 and 9113": (check_refused, _BAD_HEADERS),
    "messages that gRPC can't read": (check_refused, attack_bytes.BAD_MESSAGES),
    "paths of no method": (check_failed, attack_bytes.PATHS),
    "unusual calls": (check_answered, attack_bytes.HARMLESS),
    "all of these connections at once: memory and files are freed": (check_crowd_freed, {"all": list(_EVERYTHING)}),
    "floods: memory and files are freed": (check_flood_freed, attack_bytes.FLOODS),
    "large heads: memory is freed": (check_heads_freed, attack_bytes.HEAD_FLOODS),
    f"{RESETS} connections reset at once: memory and files are freed": (
        check_resets_freed,
        {"nothing sent": b"", "a preface": OPENING, "a call": _CALL},
    ),
    f"{CROWD} calls sent byte by byte": (check_slow_senders, {"a call": _CALL}),
}
