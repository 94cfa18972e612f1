"""Pages of docs/ that programs measure for: what a result was had with, and tables between a page's markers."""

import contextlib
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

from docs.pages import replace_rows

__all__ = ["ROOT", "replace_part", "surroundings"]

ROOT = Path(__file__).parent.parent


def surroundings(libraries: Iterable[str]) -> dict[str, str]:
    """Give the date, the commit, the machine, and the versions of Python and of the libraries."""
    cores = len(os.sched_getaffinity(0))
    found = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": _commit(),
        "machine": f"{cores} cores, {platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    return found | {name: version(name) for name in libraries}


def replace_part(page: Path, part: str, rows: Sequence[str], *, written_by: str) -> None:
    """Put the rows between the part's markers; a page without them is left as it is."""
    with contextlib.suppress(ValueError):
        page.write_text(
            replace_rows(page.read_text(encoding="utf-8"), part, rows, written_by=written_by), encoding="utf-8"
        )


def _commit() -> str:
    """Give the commit; with a + where the tree has changes."""
    asked = ["git", "describe", "--always", "--dirty=+"]
    answer = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"
