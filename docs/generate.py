"""Write the tables of docs/operations.md, docs/behavior.md and docs/licences.md, and the man page.

`--check` fails if one is old.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from bridge.core.reasons import find_reason
from bridge.settings import Settings
from bridge.telemetry.metric_table import METRICS
from docs.licences import render_licences
from docs.manual import render_manual
from docs.pages import replace_rows, run

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "operations.md"
BEHAVIOR = ROOT / "docs" / "behavior.md"
MANUAL = ROOT / "bridge" / "cli" / "shell" / "ollm-bridge.1"
LICENCES = ROOT / "docs" / "licences.md"
RULES = ROOT / "docs" / "behavior" / "tests.json"
CASES = ROOT / "tests" / "vectors" / "cases" / "expected.json"
PROTO = ROOT / "protos" / "ollmbridge" / "v1" / "error_details.proto"


def render_settings(model: type[BaseModel] = Settings, prefix: str = "") -> list[str]:
    """Return one row per setting. The unit is in the name: `_s` seconds, `_bytes` bytes."""
    rows = [] if prefix else ["| setting | default | meaning |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            rows += render_settings(field.annotation, f"{prefix}{name}.")
        else:
            bounds = ", ".join(filter(None, (_format_bound(each) for each in _list_constraints(field.metadata))))
            meaning = f"{field.description} {f'({bounds})' if bounds else ''}".rstrip()
            rows.append(
                f"| `{prefix}{name}` | {_format_default(field.get_default(call_default_factory=True))} | {meaning} |"
            )
    return rows


def _list_constraints(metadata: list[Any]) -> list[Any]:
    return [each for outer in metadata for each in (outer.metadata if hasattr(outer, "metadata") else [outer])]


def _format_bound(constraint: Any) -> str:
    words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    return ", ".join(f"{word} {getattr(constraint, name)}" for name, word in words.items() if hasattr(constraint, name))


def _format_default(value: Any) -> str:
    return "unset" if value is None else f"`{json.dumps(value)}`"


def render_reasons() -> list[str]:
    """Return one row per reason: its comment in the proto, and the advice of the command line's client."""
    rows = ["| reason | meaning | what to do |", "|---|---|---|"]
    for comment, name in re.findall(r"((?:  //[^\n]*\n)+)  ERROR_REASON_(\w+) = ", PROTO.read_text(encoding="utf-8")):
        if name != "UNSPECIFIED":
            meaning = " ".join(line.strip().removeprefix("//").strip() for line in comment.splitlines())
            rows.append(f"| `{name}` | {meaning} | {find_reason(name).advice} |")
    return rows


def render_metrics() -> list[str]:
    """Return one row per metric, as /metrics has it."""
    rows = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for spec in METRICS.values():
        labels = ", ".join(f"`{label}`" for label in spec.labels)
        rows.append(f"| `{spec.name}` | {spec.kind} | {labels} | {spec.help} |")
    return rows


def render_rules() -> list[str]:
    """Return one row per rule: its tests and reported cases. Raises ValueError for a test that does not exist."""
    rows = ["| rule | tests | reported cases |", "|---|---|---|"]
    cases = json.loads(CASES.read_text(encoding="utf-8"))
    for rule in json.loads(RULES.read_text(encoding="utf-8")):
        tests = []
        for test in rule["tests"]:
            path, _, name = test.partition("::")
            if not re.search(rf"^(?:async )?def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE):
                raise ValueError(f"{RULES.name}: there is no test {test}")
            tests.append(f"[`{name.removeprefix('test_')}`](../{path})")
        names = [f"`{name}`" for name, case in cases.items() if case["rule"] in rule["cases"]]
        rows.append(f"| {rule['rule']} | {', '.join(tests)} | {', '.join(names)} |")
    return rows


def render_contents(page: str) -> list[str]:
    """Return a page's sections as links; the alerts have a line of their own, since one looks for them at night."""
    links = {
        level: [_link(name) for name in re.findall(rf"^{level} (.+)$", page, re.MULTILINE)] for level in ("##", "###")
    }
    alerts = [link for link in links["###"] if link.startswith("[OllmBridge")]
    return [" · ".join(links["##"]), "", f"Alerts: {' · '.join(alerts)}"]


def _link(heading: str) -> str:
    """Return a link to a heading by the anchor that GitHub gives it."""
    return f"[{heading}](#{re.sub(r'[^a-z0-9 _-]', '', heading.lower()).replace(' ', '-')})"


def render_behavior(page: str) -> str:
    """Return the page with its current table."""
    return replace_rows(page, "rules", render_rules(), written_by="docs/generate.py")


def render_licences_page(page: str) -> str:
    """Return the page with its current table."""
    return replace_rows(page, "licences", render_licences(), written_by="docs/generate.py")


def render_page(page: str) -> str:
    """Return the page with its current contents and tables."""
    page = replace_rows(page, "contents", render_contents(page), written_by="docs/generate.py")
    tables = {"settings": render_settings(), "reasons": render_reasons(), "metrics": render_metrics()}
    for name, rows in tables.items():
        page = replace_rows(page, name, rows, written_by="docs/generate.py")
    return page


PAGES = {
    PAGE: render_page,
    BEHAVIOR: render_behavior,
    LICENCES: render_licences_page,
    MANUAL: lambda _page: render_manual(),
}

if __name__ == "__main__":
    sys.exit(max(run(path, render, "make docs") for path, render in PAGES.items()))
