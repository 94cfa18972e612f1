"""One run of each client, and at the end a table of what came of it."""

import os
import re
from collections import defaultdict

import pytest

from tests.clients import programs
from tests.clients.place import place

WORDS = {"passed": "same", "failed": "DIFFERS", "error": "FAILED", "skipped": "-"}
OWN = "own line"  # as expected, but not what the others show


@pytest.fixture(scope="session", params=programs.NEEDS)
def ran(request, tmp_path_factory):
    """Give a client's name, the lines that it printed by case, and what the gateway saw of it."""
    client = request.param
    if lacking := programs.missing(client):
        reason = f"this machine has no {' and no '.join(lacking)}"
        if os.environ.get("REQUIRE_CLIENTS") == "1":
            pytest.fail(f"{client} can't be run: {reason}", pytrace=False)
        pytest.skip(f"{client} is left out: {reason}")
    programs.build(client)
    with place(tmp_path_factory.mktemp(client)) as where:
        lines = programs.run(programs.commands(client)[2], programs.CLIENTS / client, where.variables)
        return client, lines, where.exchanges()


def pytest_terminal_summary(terminalreporter):
    """Print the table of clients and cases."""
    table = defaultdict(dict)
    for outcome, word in WORDS.items():
        for report in terminalreporter.stats.get(outcome, ()):
            if cell := re.search(r"test_case\[([\w-]+)-(\w+)\]$", getattr(report, "nodeid", "")):
                own = outcome == "passed" and cell.groups() in programs.differing()
                table[cell[1]][cell[2]] = OWN if own else word
    if not table:
        return
    terminalreporter.section("clients")
    cases = list(programs.expected(""))
    rows = [["", *cases], *([client, *(row.get(case, "") for case in cases)] for client, row in table.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        terminalreporter.line("  ".join(map(str.ljust, row, widths)).rstrip())
