"""Write the tables of docs/operations.md from the code that defines them. `--check` says whether they are current."""

import json
import re
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from bridge.core.reasons import find_reason
from bridge.settings import Settings
from bridge.telemetry.metric_table import METRICS
from docs.pages import run, with_part

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "operations.md"
PROTO = ROOT / "protos" / "ollmbridge" / "v1" / "error_details.proto"


def settings_table(model: type[BaseModel] = Settings, prefix: str = "") -> list[str]:
    """Give a row a setting. The unit stands in the name: `_s` seconds, `_bytes` bytes."""
    rows = [] if prefix else ["| setting | default | meaning |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            rows += settings_table(field.annotation, f"{prefix}{name}.")
        else:
            bounds = ", ".join(filter(None, (_bound(each) for each in _constraints(field.metadata))))
            meaning = f"{field.description} {f'({bounds})' if bounds else ''}".rstrip()
            rows.append(f"| `{prefix}{name}` | {_default(field.get_default(call_default_factory=True))} | {meaning} |")
    return rows


def _constraints(metadata: list[Any]) -> list[Any]:
    return [each for outer in metadata for each in (outer.metadata if hasattr(outer, "metadata") else [outer])]


def _bound(constraint: Any) -> str:
    words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    return ", ".join(f"{word} {getattr(constraint, name)}" for name, word in words.items() if hasattr(constraint, name))


def _default(value: Any) -> str:
    return "unset" if value is None else f"`{json.dumps(value)}`"


def reasons_table() -> list[str]:
    """Give a row a reason: its comment in the proto, and what the command line's client tells a person to do."""
    rows = ["| reason | meaning | what to do |", "|---|---|---|"]
    for comment, name in re.findall(r"((?:  //[^\n]*\n)+)  ERROR_REASON_(\w+) = ", PROTO.read_text(encoding="utf-8")):
        if name != "UNSPECIFIED":
            meaning = " ".join(line.strip().removeprefix("//").strip() for line in comment.splitlines())
            rows.append(f"| `{name}` | {meaning} | {find_reason(name).advice} |")
    return rows


def metrics_table() -> list[str]:
    """Give a row a metric, as it stands on the page."""
    rows = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for spec in METRICS.values():
        labels = ", ".join(f"`{label}`" for label in spec.labels)
        rows.append(f"| `{spec.name}` | {spec.kind} | {labels} | {spec.help} |")
    return rows


def written(page: str) -> str:
    """Give the page with its tables as they are now."""
    tables = {"settings": settings_table(), "reasons": reasons_table(), "metrics": metrics_table()}
    for name, rows in tables.items():
        page = with_part(page, name, rows, written_by="docs/generate.py")
    return page


if __name__ == "__main__":
    sys.exit(run(PAGE, written, "make docs"))
