"""Runs `callers` in a process of its own, on the load's cores."""

import contextlib
import json
import select
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from lab.bench.contenders import Contender
from lab.bench.loads import Load
from lab.bench.processes import LOAD_CORES, BenchmarkError, Process, pin
from lab.environment import ROOT
from tests.kit.processes import run_program

__all__ = ["hold_streams", "run_plan"]

CALLED_S_MAX = 300
OPEN_S_MAX = 60


def run_plan(contender: Contender, server: Process, load: Load, plan: str, **options: Any) -> dict[str, Any]:
    """Run a plan to its end, and return the result."""
    command = _build_command(contender, server, load, plan, options)
    done = run_program(*command, cwd=ROOT, timeout_s=CALLED_S_MAX)
    if done.code:
        raise BenchmarkError(f"the callers of {contender.title} failed with exit code {done.code}:\n{done.err}")
    result: dict[str, Any] = json.loads(done.out.splitlines()[-1])
    return result


@contextlib.contextmanager
def hold_streams(contender: Contender, server: Process, load: Load, count: int) -> Iterator[None]:
    """Hold so many streams open until the block is left; when it is entered each has its first chunk.

    The callers hold them until their input ends, so this is no program that the kit runs to its end.
    """
    command = _build_command(contender, server, load, "open", {"at_once": count})
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as caller:
        try:
            assert caller.stdout is not None
            ready, _, _ = select.select([caller.stdout], [], [], OPEN_S_MAX)
            if not ready or caller.stdout.readline() != "steady\n":
                raise BenchmarkError(f"expected {count} streams of {contender.title} to open")
            yield
            caller.communicate("", timeout=CALLED_S_MAX)
        finally:
            caller.kill()


def _build_command(contender: Contender, server: Process, load: Load, plan: str, options: dict) -> list[str]:
    body = load.request().SerializeToString() if contender.caller == "grpc" else load.document()
    whole = {"kind": contender.caller, "target": server.address, "body": body.hex(), "plan": plan, **options}
    return pin([sys.executable, "-m", "lab.bench.callers", json.dumps(whole)], LOAD_CORES)
