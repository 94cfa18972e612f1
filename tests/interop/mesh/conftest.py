"""Bridges in processes of their own, with Envoy in front and the emulated gateway behind.

Without Envoy the tests of this folder are skipped, and without Chromium or npm those in test_browser.py; with
REQUIRE_MESH=1 that is a failure. In both cases one line names the missing program.
"""

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.kit.bridges import Process, start_bridge_process
from tests.kit.chromium import CHROMIUM
from tests.kit.envoy import ENVOY, Envoy, run_envoy

NEEDS = {
    "Envoy": (ENVOY.exists(), "`make interop WHAT=mesh` installs it"),
    "Chromium": (CHROMIUM is not None, "Debian's package is chromium"),
    "npm": (shutil.which("npm") is not None, "it comes with Node.js"),
}
MISSING = {name: how for name, (there, how) in NEEDS.items() if not there}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The hook gets the items of all folders.
    for item in items:
        if not item.path.is_relative_to(Path(__file__).parent):
            continue
        needed = ("Chromium", "npm") if item.path.name == "test_browser.py" else ("Envoy",)
        if lacking := [name for name in needed if name in MISSING]:
            if os.environ.get("REQUIRE_MESH") == "1":
                raise pytest.UsageError(_describe_missing(lacking))
            item.add_marker(pytest.mark.skip(reason=_describe_missing(lacking)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in terminalreporter.stats.get("passed", ()):
        for name, value in report.user_properties:
            if name == "mesh":
                terminalreporter.write_line(value)
    # Without -rs pytest prints a number and no reason.
    if MISSING:
        terminalreporter.write_line(f"SKIPPED: {_describe_missing(list(MISSING))}")


def _describe_missing(lacking: list[str]) -> str:
    return "; ".join(f"no {name} here for tests/interop/mesh ({MISSING[name]})" for name in lacking)


@pytest.fixture
async def served_bridge(emulator) -> AsyncIterator[Process]:
    # Behind Envoy all calls have its address: docs/operations.md says to raise the bound of one caller.
    async with start_bridge_process(emulator, calls_per_caller_max=1000) as bridge:
        yield bridge


@pytest.fixture
async def envoy(served_bridge: Process, tmp_path: Path) -> AsyncIterator[Envoy]:
    """Envoy in front of one bridge."""
    async with run_envoy(tmp_path, served_bridge.address) as envoy:
        yield envoy
