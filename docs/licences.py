"""The licences of the locked packages that the image installs, read from the packages' own metadata.

`WORDS` has what older metadata says instead of an SPDX expression. A licence that is not `ACCEPTED` stops `make docs`
and `make check`: somebody decides about it before it ships.
"""

import re
from collections.abc import Iterator
from importlib.metadata import metadata
from pathlib import Path

from packaging.markers import Marker

__all__ = ["render_licences"]

LOCK = Path(__file__).parent.parent / "requirements" / "image.txt"
IMAGE = {"sys_platform": "linux", "platform_system": "Linux", "platform_python_implementation": "CPython"}
ACCEPTED = {"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "MPL-2.0", "PSF-2.0"}
"""MPL-2.0 is by file: it asks for the source of changed files alone, and nothing is changed here."""
WORDS = {"3-Clause BSD License": "BSD-3-Clause", "MIT License": "MIT"}
LINE = re.compile(r"^(?P<name>[a-z0-9.-]+)==(?P<version>\S+)(?: ; (?P<marker>[^\\]*?))?(?: \\)?$", re.MULTILINE)


def render_licences(lock: str | None = None) -> list[str]:
    """Return one row per package. Raises ValueError for a licence that nobody has accepted."""
    rows = ["| package | version | licence (SPDX) |", "|---|---|---|"]
    for name, version in _list_packages(lock or LOCK.read_text(encoding="utf-8")):
        licence = _find_licence(name)
        unknown = set(re.findall(r"[A-Za-z0-9.+-]+", licence)) - {"AND", "OR", "WITH"} - ACCEPTED
        if unknown or not licence:
            raise ValueError(f"{name} {version}: expected a licence of {sorted(ACCEPTED)}, found {licence or 'none'}")
        rows.append(f"| {name} | {version} | {licence} |")
    return rows


def _list_packages(lock: str) -> Iterator[tuple[str, str]]:
    for line in LINE.finditer(lock):
        if line["marker"] is None or Marker(line["marker"]).evaluate(IMAGE):
            yield line["name"], line["version"]


def _find_licence(name: str) -> str:
    found = metadata(name)
    text = found.get("License-Expression") or found.get("License") or ""
    return WORDS.get(text, text)
