"""One run of each client, and at the end a table of the results."""

import os
import re
from collections import defaultdict

import pytest

from tests.interop.clients import programs
from tests.interop.clients.place import start_place

WORDS = {"passed": "same", "failed": "DIFFERS", "error": "FAILED", "skipped": "-"}
OWN = "own line"  # as expected, but not the common line


@pytest.fixture(scope="session", params=programs.NEEDS)
def client_run(request, tmp_path_factory):
    """A client's name, the lines that it printed by case, and its exchanges at the gateway."""
    client = request.param
    if lacking := programs.find_missing(client):
        reason = f"this machine has no {' and no '.join(lacking)}"
        if os.environ.get("REQUIRE_CLIENTS") == "1":
            pytest.fail(f"{client} can't be run: {reason}", pytrace=False)
        pytest.skip(f"{client} is skipped: {reason}")
    programs.build(client)
    with start_place(tmp_path_factory.mktemp(client)) as place:
        lines = programs.run(programs.read_commands(client)[2], programs.CLIENTS / client, place.variables)
        return client, lines, place.fetch_exchanges()


def pytest_terminal_summary(terminalreporter):
    """Print the table of clients and cases."""
    table = defaultdict(dict)
    for outcome, word in WORDS.items():
        for report in terminalreporter.stats.get(outcome, ()):
            if cell := re.search(r"test_case\[([\w-]+)-(\w+)\]$", getattr(report, "nodeid", "")):
                own = outcome == "passed" and cell.groups() in programs.find_differences()
                table[cell[1]][cell[2]] = OWN if own else word
    if not table:
        return
    terminalreporter.section("clients")
    cases = list(programs.read_expected(""))
    rows = [["", *cases], *([client, *(row.get(case, "") for case in cases)] for client, row in table.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        terminalreporter.line("  ".join(map(str.ljust, row, widths)).rstrip())
