"""The upstream's name is given another address, taken away and given back, in a mount namespace."""

import contextlib
from pathlib import Path

from bridge.emulator import Emulator
from lab.report import Result
from lab.torture.chaos.calls import open_channel
from lab.torture.kill.calls import (
    CONCURRENCY,
    SOON_S,
    UNREACHABLE,
    build_namespace_command,
    build_result,
    find_other_ends,
    make_calls,
    measure_recovery_s,
)
from lab.torture.subject import run_bridge
from tests.kit.client import Bridge
from tests.kit.processes import describe_missing_namespaces

__all__ = ["change_names"]

HOSTS = 'mount --bind "$1" /etc/hosts && shift && exec "$@"'
# Names, in a mount namespace

NAME = "gateway.test"


async def change_names(folder: Path, rounds: int) -> list[Result]:
    """Point the upstream's name to another address, and to none."""
    cases = ("the upstream's name gets another address", "the upstream's name is unknown for a while")
    if why := describe_missing_namespaces():
        return [build_result(case, 0, [], f"not run: {why}") for case in cases]
    hosts = folder / "hosts"
    stays: list[str] = []
    unknown: list[str] = []
    moved_within_s: list[float] = []
    known_s: list[float] = []
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(rounds):
            old = Emulator(host="127.0.0.1")
            await old.accept()
            new = await stack.enter_async_context(Emulator(host="127.0.0.2", port=old.port))
            point_name(hosts, "127.0.0.1")
            settings = {"command": build_namespace_command(HOSTS, str(hosts)), "upstream__plaintext": "true"}
            subject = await stack.enter_async_context(run_bridge(f"{NAME}:{old.port}", folder=folder, **settings))
            caller = Bridge(subject.address, await stack.enter_async_context(open_channel(subject.address)))
            stays += find_other_ends(await make_calls(caller), "OK")
            point_name(hosts, "127.0.0.2")
            for _ in range(CONCURRENCY):
                stays += find_other_ends(await make_calls(caller, 1), "OK")  # over a kept connection
            stays += ["a kept connection was not used"] * bool(new.exchanges)
            await old.__aexit__(None, None, None)
            moved = await measure_recovery_s(caller, SOON_S)
            moved_within_s.append(moved if moved is not None else float("inf"))
            stays += find_other_ends(await make_calls(caller), "OK")
            stays += ["the new address got no call"] * (not new.exchanges)
            point_name(hosts, "")
            await new.refuse()
            for connection in list(new.connections):
                connection.abort()
            unknown += find_other_ends(await make_calls(caller), UNREACHABLE)
            point_name(hosts, "127.0.0.2")
            await new.accept()
            known = await measure_recovery_s(caller, SOON_S)
            known_s.append(known if known is not None else float("inf"))
    stays += [f"only after {each:.1f} s" for each in moved_within_s if each > SOON_S]
    unknown += ["not back in time" for each in known_s if each > SOON_S]
    return [
        build_result(
            cases[0],
            rounds * CONCURRENCY * 3,
            stays,
            "kept connections stay in use; once the old address is dead, the first call is OK at the new one",
            "a name is resolved for each new connection",
            moved_within_ms=max(moved_within_s) * 1000,
        ),
        build_result(
            cases[1], rounds * CONCURRENCY, unknown, f"{UNREACHABLE}; then OK", back_after_ms=max(known_s) * 1000
        ),
    ]


def point_name(hosts: Path, address: str) -> None:
    """Point the name to the address, by writing to the same file, since it is mounted."""
    hosts.write_text(f"127.0.0.1 localhost\n{address} {NAME}\n" if address else "127.0.0.1 localhost\n")
