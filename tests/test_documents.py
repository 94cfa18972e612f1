"""docs/behavior.md says what the vectors say, the man page has everything, and the picture shows the demo."""

import ast
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.cli import demo
from bridge.settings import load
from docs import terminal
from docs.manual import render_manual
from tests.kit.processes import run_program
from tests.kit.status_table import Verdict, build_table, read_table

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "terminal.svg"
BEHAVIOR = ROOT / "docs" / "behavior.md"
ROW = re.compile(r"\| (?P<http>[^|]*[345][^|]*) \| (?P<code>[A-Z_]+) \| (?P<reason>[A-Z_]+) \|")
UNTABLED = re.compile("2xx|of a framework")
"""Rows that need more than a status and whether there is an envelope."""
CLAUSE = re.compile(r"(?P<statuses>.*?)(?: (?P<envelope>with|without) E)?")


def read_rows(page: str) -> Iterator[tuple[str, str, Verdict]]:
    """Yield statuses, envelope and verdict of the table's rows that are of a status; E is an envelope."""
    for row in ROW.finditer(page.replace("\N{EN DASH}", "-")):
        for clause in row["http"].split("; ") if not UNTABLED.search(row["http"]) else ():
            found = CLAUSE.fullmatch(clause.removeprefix("any "))
            assert found is not None
            for part in found["statuses"].split(", "):
                statuses = f"other {part}" if re.fullmatch(r"\dxx", part) else part
                yield statuses, found["envelope"] or "any", (row["code"], row["reason"])


def test_table_of_statuses_is_that_of_the_vectors():
    page = BEHAVIOR.read_text(encoding="utf-8")
    assert build_table(read_rows(page)) == read_table()


def test_row_that_differs_is_found():
    page = BEHAVIOR.read_text(encoding="utf-8").replace("| 402 | FAILED_PRECONDITION |", "| 402 | ABORTED |")
    assert build_table(read_rows(page))[402, True] != read_table()[402, True]


# The picture of a terminal


def test_picture_is_of_the_demo_that_there_is():
    """Ids and ports differ from run to run, so only what each run shows is compared."""
    root = ET.parse(PICTURE).getroot()
    lines = ["".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")]
    shown = "\n".join(lines)
    for title, arguments in demo.CALLS:
        assert f"# {title}" in shown
        assert shlex.quote(arguments[-1]) in shown
    assert "RESOURCE_EXHAUSTED: rate limit exceeded" in shown
    assert max(map(len, lines)) <= terminal.COLUMNS


def test_program_is_recorded_with_its_colors_at_a_terminal():
    code = "import os, sys; print(sys.stdout.isatty(), os.get_terminal_size().columns, '\\x1b[2mfaint\\x1b[0m')"
    assert terminal.record([sys.executable, "-c", code], columns=77) == "True 77 \x1b[2mfaint\x1b[0m\r\n"
    with pytest.raises(subprocess.CalledProcessError):
        terminal.record([sys.executable, "-c", "exit(3)"])


@pytest.mark.parametrize(
    ("text", "runs"),
    [
        ("abc", [("", "abc")]),
        ("abcde", [("", "abcde")]),
        ("abcdef", [("", "abcd…")]),
        ("\x1b[1mab\x1b[0mcd", [("bold", "ab"), ("", "cd")]),
        ("\x1b[31mab\x1b[0mcdef", [("red", "ab"), ("", "cd…")]),
        ("\x1b[2mabcde\x1b[0mf", [("faint", "abcd…")]),
        ("", []),
    ],
)
def test_line_is_cut_to_the_columns(text, runs):
    assert terminal.parse(text + "\n", columns=5) == [runs]


@given(st.lists(st.text(st.characters(exclude_categories=["C", "Z"]), max_size=9)))
def test_picture_of_any_text_is_xml(lines):
    picture = terminal.draw(terminal.parse("\n".join([*lines, "<&>"])), title="a & b")
    root = ET.fromstring(picture)
    shown = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert shown == [*filter(None, lines), "<&>"]


# The man page


def test_man_page_has_every_command_and_setting():
    page = render_manual().replace("\\-", "-")
    assert all(f"\n.SS {command}\n" in page for command in ("serve", "check", "chat", "emulate", "completion"))
    assert all(f"\n.TP\n\\fB{each.name}\\fR (" in page for each in load().describe())


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_man_page_is_shown_without_a_warning():
    done = run_program("groff", "-man", "-ww", "-Tutf8", "-Kutf8", input=render_manual(), stdin=None)
    assert (done.code, done.err) == (0, "")
    assert "docs/operations.md" in done.out


# The log


LEVELS = {"info", "warning", "error", "exception", "critical"}


def list_events(source: ast.Module) -> Iterator[str]:
    """Yield the texts that a module logs; of one that is put together, its constant parts with … between."""
    constants = {
        ast.unparse(target): node.value
        for node in ast.walk(source)
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    }
    for node in ast.walk(source):
        if isinstance(node, ast.Call) and re.fullmatch(rf"_LOG\.({'|'.join(LEVELS)})", ast.unparse(node.func)):
            event = constants.get(ast.unparse(node.args[0]), node.args[0])
            parts = event.values if isinstance(event, ast.JoinedStr) else [event]
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)


def test_table_of_the_log_has_every_event_and_no_other():
    modules = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "bridge").rglob("*.py")]
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    table = page.partition("| event | level | meaning |\n|---|---|---|\n")[2].partition("\n\n")[0]
    named = [name for row in table.splitlines() for name in re.findall(r"`([^`]+)`", row.split(" | ")[0])]
    assert sorted(named) == sorted({"call", *(event for module in modules for event in list_events(module))})


# The chart's README


def test_readme_of_the_chart_names_every_value():
    chart = ROOT / "deploy" / "helm" / "ollm-bridge"
    values = re.findall(r"^([A-Za-z]+):", (chart / "values.yaml").read_text(encoding="utf-8"), re.MULTILINE)
    table = (chart / "README.md").read_text(encoding="utf-8").partition("**All values**")[2]
    named = [name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == sorted(values)
