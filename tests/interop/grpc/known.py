"""Lists of what is known to fail: a case or a pattern a line, and the reason in the comment above it."""

from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).parent


def read(path: Path) -> set[str]:
    """Return the cases of a list. Each group of them must have its reason."""
    groups = [group.splitlines() for group in path.read_text(encoding="utf-8").split("\n\n")]
    for group in groups:
        assert group[0].startswith("#"), f"{path.name}: expected a reason above {group[0]!r}"
    return {line for group in groups for line in group if not line.startswith("#")}


def list_held(engines: Iterable[str]) -> list[str]:
    """Return the engines that are held to h2spec."""
    return [engine for engine in engines if (FOLDER / "h2spec" / f"{engine}.txt").exists()]
