"""Where a result was measured: date, commit, machine, and the versions of what took part.

A result is kept with its environment, and a page says it above the table. Figures of two environments do not compare.
"""

import contextlib
import os
import platform
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tests.kit.proc import read_processor
from tests.kit.processes import ROOT, run_program

__all__ = ["ROOT", "ask_version", "describe_environment", "format_environment"]

_SENTENCE = ("date", "commit", "machine", "load")
"""What the sentence says by itself; all else is a name and its version."""


def describe_environment(libraries: Iterable[str], **more: str | None) -> dict[str, str]:
    """Return what a result depends on. `more` are further names and versions.

    What is not installed is left out. The load average shows whether others use the machine.
    """
    cores = f"{len(os.sched_getaffinity(0))} cores ({read_processor() or platform.processor()})"
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": _read_commit(),
        "machine": f"{cores}, {platform.system()} {platform.release()} {platform.machine()}",
        "load": f"{os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        **{name: found for name, found in [*_find_versions(libraries), *more.items()] if found is not None},
    }


def format_environment(environment: Mapping[str, str]) -> str:
    """Return a sentence."""
    versions = ", ".join(f"{name} {found}" for name, found in environment.items() if name not in _SENTENCE)
    load = f"; load average at the beginning {environment['load']}" if "load" in environment else ""
    return f"{environment['date']}, commit {environment['commit']}, on {environment['machine']}{load}; {versions}."


def ask_version(program: str | Path | None, option: str, pattern: str) -> str | None:
    """Return what a program says of its version, the pattern's first group; None if it is not installed."""
    if program is None or not Path(program).exists():
        return None
    answer = run_program(program, option)
    found = re.search(pattern, answer.out + answer.err)
    return found[1] if found else None


def _find_versions(libraries: Iterable[str]) -> Iterator[tuple[str, str]]:
    for name in libraries:
        with contextlib.suppress(PackageNotFoundError):
            yield name, version(name)


def _read_commit() -> str:
    """Return the commit; with a + if the tree has changes."""
    return run_program("git", "describe", "--always", "--dirty=+", cwd=ROOT).out.strip() or "unknown"
