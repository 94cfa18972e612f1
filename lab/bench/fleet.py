"""The processes of one scene: an upstream, and the contenders before it, which all run while they take turns."""

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lab.bench import h2load, loads, processes
from lab.bench.contenders import BRIDGE, Contender
from lab.bench.contenders.place import Place
from lab.bench.h2load import Ran
from lab.bench.loads import Load
from lab.bench.processes import LOAD_CORES, SERVER_CORES, Process

__all__ = ["Effort", "Fleet", "fleet", "in_turn"]

CALIBRATION_S_MIN = 0.25
UPSTREAMS = {
    "canned": ["-m", "lab.bench.canned"],
    "emulator": ["-m", "bridge", "emulate", "--listen", "127.0.0.1:0"],
}


@dataclass(frozen=True)
class Effort:
    """How hard to measure. `contenders` are those to be measured, `files` is a directory of this run's."""

    contenders: tuple[Contender, ...]
    files: Path
    rounds: int
    run_s: float
    quick: bool

    def some(self, *keys: str) -> tuple[Contender, ...]:
        """Those to be measured that have these keys; other checkouts' bridges come with the bridge."""
        return tuple(each for each in self.contenders if each.key.split()[0] in keys)

    @property
    def servers(self) -> tuple[Contender, ...]:
        return tuple(each for each in self.contenders if each.is_server)


@dataclass(frozen=True)
class Fleet:
    upstream: Process
    servers: dict[Contender, Process]
    files: Path
    load_cores: Sequence[int] = LOAD_CORES

    def of(self, contenders: Iterable[Contender]) -> "Fleet":
        """The same processes, with some of the contenders."""
        return replace(self, servers={each: self.servers[each] for each in contenders})


@contextlib.contextmanager
def fleet(
    contenders: Iterable[Contender],
    files: Path,
    *,
    upstream: Literal["canned", "emulator"],
    server_cores: Sequence[int] = SERVER_CORES,
    load_cores: Sequence[int] = LOAD_CORES,
    tls: Path | None = None,
) -> Iterator[Fleet]:
    """Run an upstream and the contenders, the bridge before (b), which answers with the bridge's bytes.

    With `tls`, a folder of certificates, calls come and go on by TLS; only the canned upstream can do so.
    """
    with contextlib.ExitStack() as stack:
        command = [sys.executable, *UPSTREAMS[upstream], *([str(tls)] if tls else [])]
        behind = stack.enter_context(processes.start(command, cores=load_cores, log=files / f"{upstream}.log"))
        place = Place(behind, files, server_cores, tls=tls)
        servers = {}
        for contender in contenders:
            servers[contender] = stack.enter_context(contender.start(place))
            if contender is BRIDGE:
                stream = Load.paced(1, 1) if upstream == "emulator" else Load.fast(1)
                loads.keep_answers(servers[BRIDGE], stream, files)
        yield Fleet(behind, servers, files, load_cores)


def in_turn(
    running: Fleet, load: Load, *, rounds: int, run_s: float, connections: int = 4
) -> dict[Contender, list[Ran]]:
    """Run each contender once per round, after runs that warm up and find the number of calls that take `run_s`."""

    def run(contender: Contender, calls: int) -> Ran:
        return h2load.run(
            running.servers[contender],
            running.upstream,
            load,
            calls,
            protocol=contender.caller,
            files=running.files,
            answer_bytes=answer_bytes[contender],
            connections=connections,
            cores=running.load_cores,
        )

    answer_bytes = {
        contender: loads.verify(server, load, contender.caller) for contender, server in running.servers.items()
    }
    calls = {
        contender: calls_for(run_s, load.at_once, lambda count, who=contender: run(who, count).wall_s)
        for contender in answer_bytes
    }
    ran: dict[Contender, list[Ran]] = {contender: [] for contender in answer_bytes}
    for _ in range(rounds):
        for contender, each in ran.items():
            each.append(run(contender, calls[contender]))
    return ran


def calls_for(run_s: float, at_once: int, wall_s_of: Callable[[int], float]) -> int:
    """How many calls take so long, as whole turns of `at_once`, by runs that grow until they can be timed."""
    calls = at_once
    while (wall_s := wall_s_of(calls)) < CALIBRATION_S_MIN:
        calls *= 4
    return max(1, round(run_s / wall_s * calls / at_once)) * at_once
