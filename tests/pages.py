"""Pages of docs/ with measured results: where a result was measured, and the tables between a page's markers."""

import contextlib
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

from docs.pages import replace_rows

__all__ = ["ROOT", "describe_environment", "replace_part"]

ROOT = Path(__file__).parent.parent


def describe_environment(libraries: Iterable[str]) -> dict[str, str]:
    """Return the date, the commit, the machine, and the versions of Python and of the libraries."""
    cores = len(os.sched_getaffinity(0))
    found = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": _commit(),
        "machine": f"{cores} cores, {platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    return found | {name: version(name) for name in libraries}


def replace_part(page: Path, part: str, rows: Sequence[str], *, written_by: str) -> None:
    """Put the rows between the part's markers; a page without them stays as it is."""
    with contextlib.suppress(ValueError):
        page.write_text(
            replace_rows(page.read_text(encoding="utf-8"), part, rows, written_by=written_by), encoding="utf-8"
        )


def _commit() -> str:
    """Return the commit; with a + if the tree has changes."""
    command = ["git", "describe", "--always", "--dirty=+"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"
