"""The torture's program: which of its results the page has a table for."""

import pytest

from lab.report import RELIABILITY
from lab.torture.__main__ import BY_ENGINE, ENGINE, PARTS, find_table


@pytest.mark.parametrize("engine", ["grpcio", "native"])
def test_page_has_a_table_for_what_is_kept(engine):
    page = RELIABILITY.path.read_text(encoding="utf-8")
    tables = [name for name, is_kept in (find_table(part, engine) for part in PARTS) if is_kept]
    assert [name for name in tables if f"<!-- {name}: written by make lab -->" not in page] == []
    assert len(tables) == len(PARTS if engine == ENGINE else BY_ENGINE)


def test_engines_never_share_a_table():
    tables = [find_table(part, engine)[0] for part in PARTS for engine in ("grpcio", "native")]
    assert len(set(tables)) == len(tables)
