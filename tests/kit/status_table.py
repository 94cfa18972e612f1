"""The one table from an upstream's HTTP status to a code and a reason: `tests/vectors/status.json`, expanded.

It is written from the contract, not from the bridge's code, so that tests and the laboratory hold the bridge to it.
`other 4xx` are those that no row names. An envelope is the JSON object in which the upstream reports an error.
"""

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Final, NamedTuple

from tests.kit.vectors import FOLDER

__all__ = [
    "ENVELOPED",
    "HTTP_STATUSES",
    "WITHOUT_ENVELOPE",
    "Row",
    "Verdict",
    "build_table",
    "find_verdict",
    "read_table",
]

HTTP_STATUSES: Final = range(300, 600)
_ENVELOPES: Final = {"any": (True, False), "with": (True,), "without": (False,)}

Verdict = tuple[str, str]
"""A code and a reason."""


class Row(NamedTuple):
    """A status, and the form of its body by the name that the emulator has for it."""

    status: int
    form: str
    verdict: Verdict


def expand_statuses(text: str) -> set[int]:
    """Return the statuses of a text such as "503, 520-523" or "other 4xx"."""
    if group := re.fullmatch(r"(?:other )?(\d)xx", text):
        return {status for status in HTTP_STATUSES if status // 100 == int(group[1])}
    found: set[int] = set()
    for part in text.split(", "):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def build_table(rows: Iterable[tuple[str, str, Verdict]]) -> dict[tuple[int, bool], Verdict]:
    """Return the verdict of each status with an envelope and without, from rows of statuses, envelope and verdict."""
    table: dict[tuple[int, bool], Verdict] = {}
    for statuses, envelope, verdict in sorted(rows, key=lambda row: row[0].startswith("other")):
        is_default = statuses.startswith("other")
        for status, has_envelope in itertools.product(expand_statuses(statuses), _ENVELOPES[envelope]):
            kept = table.setdefault((status, has_envelope), verdict)
            assert is_default or kept == verdict, f"{status} has two rows"
    return table


@cache
def read_table() -> dict[tuple[int, bool], Verdict]:
    rows = json.loads((FOLDER / "status.json").read_bytes())
    return build_table((row["http"], row["envelope"], (row["code"], row["reason"])) for row in rows)


def find_verdict(status: int, *, has_envelope: bool) -> Verdict:
    """Return the code and the reason of an answer with this status."""
    return read_table()[status, has_envelope]


def _list_rows(forms: dict[str, str], *, has_envelope: bool) -> Iterator[Row]:
    for form, statuses in forms.items():
        for status in sorted(expand_statuses(statuses)):
            yield Row(status, form, find_verdict(status, has_envelope=has_envelope))


ENVELOPED: Final = tuple(
    _list_rows(
        {
            "full": "400-406, 408-410, 413, 415, 418, 422, 425, 429, 431, 451, 499-504, 507, 520-527, 529, 530, 599",
            "flat": "404",
            "detail": "404",
            "message": "404",
            "bare": "502",
        },
        has_envelope=True,
    )
)
WITHOUT_ENVELOPE: Final = tuple(
    _list_rows(
        {
            "html": "400, 404, 406, 411, 429, 431, 500, 502, 503",
            "empty": "300-304, 307, 308, 401, 404, 405, 502, 504",
            "none": "404",
        },
        has_envelope=False,
    )
)
"""Statuses of each row, in the forms that upstreams have; `tests/unit/core/test_http_errors.py` has all statuses."""
