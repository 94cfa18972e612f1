"""Each case that is known to fail has its reason."""

import pytest

from tests.interop.grpc import known

LISTS = sorted(known.FOLDER.glob("*/*.txt"))


@pytest.mark.parametrize("path", LISTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_list_has_reasons(path):
    known.read(path)


def test_case_without_a_reason_is_refused(tmp_path):
    path = tmp_path / "engine.txt"
    path.write_text("# why\none\ntwo\n\nthree\n")
    with pytest.raises(AssertionError, match="a reason above 'three'"):
        known.read(path)


def test_comment_at_the_top_is_no_case(tmp_path):
    path = tmp_path / "engine.txt"
    path.write_text("# what this is\n\n# why\none\ntwo\n")
    assert known.read(path) == {"one", "two"}
