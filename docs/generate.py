"""Write the tables of docs/operations.md from the code that defines them. `--check` fails if they are not current."""

import json
import re
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from bridge.core.reasons import find_reason
from bridge.settings import Settings
from bridge.telemetry.metric_table import METRICS
from docs.pages import replace_rows, run

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "operations.md"
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


def render_page(page: str) -> str:
    """Return the page with its current tables."""
    tables = {"settings": render_settings(), "reasons": render_reasons(), "metrics": render_metrics()}
    for name, rows in tables.items():
        page = replace_rows(page, name, rows, written_by="docs/generate.py")
    return page


if __name__ == "__main__":
    sys.exit(run(PAGE, render_page, "make docs"))
