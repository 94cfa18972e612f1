"""The contenders in Go, built from lab/bench/go when they first start; Go keeps what it has built."""

import functools
from contextlib import AbstractContextManager
from pathlib import Path

from lab.bench import processes
from lab.bench.contenders.place import Place
from lab.bench.processes import BenchmarkError, Process
from lab.environment import ROOT
from tests.kit.processes import clean_environment, find_program, run_program

__all__ = ["BUILT", "GO", "start_go_bare", "start_go_bridge"]

SOURCE = ROOT / "lab/bench/go"
BUILT = ROOT / "dist/bench-go"
GO = Path(find_program("go") or "go")
BUILD_S_MAX = 900
COMMANDS = (
    ("buf", "generate"),  # runs the generators that go.mod pins
    (str(GO), "build", "-o", f"{BUILT}/", "./bare", "./bridge"),
)


def start_go_bare(place: Place) -> AbstractContextManager[Process]:
    return _start("bare", "-answers", str(place.files), place=place)


def start_go_bridge(place: Place, *, keep: bool) -> AbstractContextManager[Process]:
    more = ["-keep"] if keep else []
    return _start("bridge", "-upstream", place.upstream_url, *more, place=place)


def _start(name: str, *arguments: str, place: Place) -> AbstractContextManager[Process]:
    tls = ["-tls", str(place.tls)] if place.tls else []
    return processes.start(
        [str(_build() / name), *arguments, *tls],
        cores=place.cores,
        log=place.log(f"go_{name}"),
        tls=place.tls,
    )


@functools.cache
def _build() -> Path:
    """Build both programs, and return their folder."""
    path = {"PATH": f"{GO.parent}:{ROOT / '.venv/bin'}:{clean_environment().get('PATH', '')}"}
    for command in COMMANDS:
        done = run_program(*command, cwd=SOURCE, environment=clean_environment() | path, timeout_s=BUILD_S_MAX)
        if done.code:
            raise BenchmarkError(f"`{' '.join(command)}` in {SOURCE} failed:\n{done.out}{done.err}")
    return BUILT
