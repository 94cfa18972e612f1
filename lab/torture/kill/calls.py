"""Shared by the cases: calls, the answers that callers must get, and a namespace of mounts for a bridge."""

import asyncio
import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab.report import Result
from lab.torture.chaos.calls import describe_end
from tests.kit.client import Answer, Bridge, chat

__all__ = [
    "CONCURRENCY",
    "DISCONNECTED",
    "FAR_S",
    "SOON_S",
    "UNREACHABLE",
    "build_namespace_command",
    "build_result",
    "find_other_ends",
    "make_calls",
    "measure_recovery_s",
    "read_records",
]

CONCURRENCY = 20
SOON_S = 1.0
FAR_S = 20.0
UNREACHABLE, DISCONNECTED = "UNAVAILABLE UPSTREAM_UNREACHABLE", "ABORTED UPSTREAM_DISCONNECTED"


def build_result(
    case: str, tried: int, wrong: Sequence[str], outcome: str, note: str = "", **figures: float | str
) -> Result:
    counts = ", ".join(f"{count} x {what}" for what, count in Counter(wrong).most_common(5))
    named = {name.replace("_", " "): value for name, value in figures.items()}
    return Result(case, tried, counts or outcome, not wrong, named, note)


def find_other_ends(answers: Sequence[Answer], end: str) -> list[str]:
    """Return the ends that are not as required."""
    return [f"{describe_end(each)} instead of {end}" for each in answers if describe_end(each) != end]


async def make_calls(
    caller: Bridge, count: int = CONCURRENCY, *, stream: bool | None = None, **options: Any
) -> list[Answer]:
    """Make good calls concurrently, half of them streamed unless `stream` is set."""
    calls = [
        caller.ask(chat(), stream=bool(number % 2) if stream is None else stream, timeout=FAR_S, **options)
        for number in range(count)
    ]
    return await asyncio.gather(*calls)


async def measure_recovery_s(caller: Bridge, limit_s: float) -> float | None:
    """Call until a call is OK, and return how long that took; None if it took longer than the limit."""
    began_at = time.monotonic()
    while time.monotonic() < began_at + limit_s:
        if (await caller.ask(chat(), timeout=FAR_S)).failure is None:
            return time.monotonic() - began_at
        await asyncio.sleep(0.02)
    return None


def build_namespace_command(script: str, *arguments: str) -> tuple[str, ...]:
    """Return the arguments with which Python runs a bridge in a mount namespace that a shell script sets up."""
    command = ["unshare", "-rm", "sh", "-c", script, "sh", *arguments, sys.executable, "-m", "bridge", "serve"]
    return ("-c", f"import os; os.execvp('unshare', {command!r})")


def read_records(log: Path) -> list[Any]:
    """Return the log's lines that are whole."""
    found = []
    for line in log.read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found
