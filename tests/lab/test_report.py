"""The laboratory's one form of a result: kept, read back, and shown as a table."""

import math
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.environment import format_environment
from lab.report import MarkerError, Page, Report, Result, compare, format_figure, run_parts

ENVIRONMENT = {"date": "2026-11-29", "commit": "abc", "machine": "2 cores", "load": "0.5", "python": "3.13.1"}
COMPARED = [
    Result("a call", 3, figures={"CPU µs": (400.0, 410.0, 390.0), "a second": (2500.0,)}, contender="(a) mine"),
    Result("a call", 1, figures={"CPU µs": (200.0,)}, contender="(b) its"),
]
LISTED = [
    Result("a | b", 1200, "OK", figures={"longest, s": 0.25}, note="at most 1 s"),
    Result("c", 1, "lost", ok=False, figures={"of": "two"}),
]


def create_page(tmp_path, text="<!-- one: written by make lab -->\nold\n<!-- /one -->\nend\n", **options):
    (tmp_path / "page.md").write_text(text, encoding="utf-8")
    return Page("page", folder=tmp_path, **options)


FIGURES = st.one_of(
    st.text(max_size=5),
    st.integers(-10, 10).map(float),
    st.lists(st.integers(0, 99).map(float), min_size=1, max_size=4).map(tuple),
)


@given(
    results=st.lists(
        st.builds(
            Result,
            case=st.text(),
            tried=st.integers(0, 9),
            outcome=st.text(),
            ok=st.booleans(),
            figures=st.dictionaries(st.text(), FIGURES, max_size=3),
            note=st.text(),
            contender=st.text(),
        ),
        max_size=4,
    ),
    notes=st.lists(st.text(), max_size=2),
)
def test_any_report_is_read_back_as_it_was_kept(tmp_path_factory, results, notes):
    page = create_page(tmp_path_factory.mktemp("page"))
    page.keep("one", Report(results, notes), ENVIRONMENT, 12.4)
    kept = page.read("one")
    assert (kept.results, kept.notes, kept.environment, kept.took_s) == (results, notes, ENVIRONMENT, 12)


def test_part_that_was_never_kept_is_none(tmp_path):
    assert create_page(tmp_path).read("one") is None
    assert create_page(tmp_path).read_all() == {}


def test_tables_are_written_between_their_markers(tmp_path):
    page = create_page(tmp_path)
    page.keep("one", Report(LISTED, ["A note."]), ENVIRONMENT, 3)
    page.write_tables()
    assert page.path.read_text(encoding="utf-8") == (
        "<!-- one: written by make lab -->\n"
        "2026-11-29, commit abc, on 2 cores; load average at the beginning 0.5; python 3.13.1. 3 s.\n\n"
        "| case | tried | outcome | figures |\n"
        "| --- | --- | --- | --- |\n"
        "| a \\| b | 1,200 | OK; at most 1 s | longest, s 0.25 |\n"
        "| c | 1 | **not as required:** lost | of two |\n\n"
        "- A note.\n"
        "<!-- /one -->\nend\n"
    )


@pytest.mark.parametrize("lost", ["<!-- one: written by make lab -->", "<!-- /one -->"])
def test_table_whose_markers_are_lost_is_an_error(tmp_path, lost):
    page = create_page(tmp_path)
    before = page.path.read_text(encoding="utf-8").replace(lost, "")
    page.path.write_text(before, encoding="utf-8")
    page.keep("one", Report(LISTED), ENVIRONMENT, 3)
    with pytest.raises(MarkerError, match=r"the table of one has no place in page\.md"):
        page.write_tables()
    assert page.path.read_text(encoding="utf-8") == before


@pytest.mark.parametrize("name", ["performance", "reliability", "scale"])
def test_each_kept_part_has_a_place_in_its_page(name, tmp_path):
    kept = Page(name)
    shutil.copy(kept.path, tmp_path)
    shutil.copytree(kept.results, tmp_path / name)
    Page(name, folder=tmp_path).write_tables()


def test_contenders_are_rows_beside_the_reference():
    assert compare(COMPARED, "(a) mine") == (
        ["", "", "CPU µs", "x (a)", "a second"],
        [["a call", "(a) mine", "400 (390-410)", "1.00", "2,500"], ["", "(b) its", "200", "0.50", ""]],
    )
    assert compare(COMPARED, "")[0] == ["", "", "CPU µs", "a second"]


def test_table_of_a_terminal_says_which_case_is_not_as_required(tmp_path):
    page = create_page(tmp_path, beside=frozenset({"one"}), reference="(a) mine")
    assert page.list_lines("one", Report(LISTED, ["A note."])) == [
        "ok  a | b (tried 1200): OK; longest, s 0.25; at most 1 s",
        "BAD c (tried 1): lost; of two",
        "A note.",
    ]
    assert page.list_lines("one", Report(COMPARED))[1:] == [
        "a call  (a) mine  400 (390-410)   1.00     2,500",
        "        (b) its             200   0.50",
    ]


@pytest.mark.parametrize(
    ("figure", "expected"),
    [
        (0.0, "0"),
        (1234.6, "1,235"),
        (12.34, "12.3"),
        (1.5, "1.50"),
        (0.0123, "0.012"),
        (7, "7"),
        ((2.0, 1.0, 4.0), "2 (1-4)"),
        ((3.0, 3.0), "3"),
        ("never", "never"),
        (math.nan, "nan"),
        (math.inf, "inf"),
    ],
)
def test_figure_has_three_digits_that_count(figure, expected):
    assert format_figure(figure) == expected


def test_parts_that_fail_or_find_a_fault_are_named_and_the_others_are_kept(tmp_path, capsys):
    page = create_page(tmp_path)

    def fail():
        raise OSError("no such server")

    parts = {"one": lambda: Report(LISTED[:1]), "two": fail, "three": lambda: Report(LISTED)}
    assert run_parts(page, parts, ENVIRONMENT, keeps=True) == ["two", "three"]
    assert list(page.read_all()) == ["one", "three"]
    assert "no such server" in capsys.readouterr().err
    assert run_parts(page, parts, ENVIRONMENT, keeps=False) == ["two", "three"]


def test_environment_without_a_load_is_a_sentence_without_it():
    rest = {name: value for name, value in ENVIRONMENT.items() if name != "load"}
    assert format_environment(rest) == "2026-11-29, commit abc, on 2 cores; python 3.13.1."
