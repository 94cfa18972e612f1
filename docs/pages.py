"""Tables between a page's markers, for the programs that write them from code or from figures."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["replace_rows", "run"]


def replace_rows(page: str, part: str, rows: Sequence[str], *, written_by: str) -> str:
    """Return the page with the rows between the part's markers. Raises ValueError if it has none."""
    begin, end = f"<!-- {part}: written by {written_by} -->", f"<!-- /{part} -->"
    before, found, rest = page.partition(begin)
    if not found or end not in rest:
        raise ValueError(f"the page lacks {begin} or {end}")
    return before + "\n".join((begin, *rows, end)) + rest.partition(end)[2]


def run(path: Path, render: Callable[[str], str], command: str) -> int:
    """Write a page as `render` returns it, or with --check compare it; return the exit code. `command` writes it."""
    page = path.read_text(encoding="utf-8")
    if "--check" not in sys.argv:
        path.write_text(render(page), encoding="utf-8")
    elif page != render(page):
        print(f"{path.name} is not current: run `{command}`", file=sys.stderr)
        return 1
    return 0
