"""Tables between a page's markers, for the programs that write them from code or from figures."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["run", "with_part"]


def with_part(page: str, part: str, rows: Sequence[str], *, written_by: str) -> str:
    """Give the page with the rows between the part's markers. Raises ValueError where it has none."""
    begin, end = f"<!-- {part}: written by {written_by} -->", f"<!-- /{part} -->"
    before, found, rest = page.partition(begin)
    if not found or end not in rest:
        raise ValueError(f"expected {begin} and {end} in the page")
    return before + "\n".join((begin, *rows, end)) + rest.partition(end)[2]


def run(path: Path, written: Callable[[str], str], command: str) -> int:
    """Write a page as `written` gives it, or with --check compare it; give the exit code. `command` writes it."""
    page = path.read_text(encoding="utf-8")
    if "--check" not in sys.argv:
        path.write_text(written(page), encoding="utf-8")
    elif page != written(page):
        print(f"{path.name} is not current: run `{command}`", file=sys.stderr)
        return 1
    return 0
