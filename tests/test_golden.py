"""What went over the wire goes over it still: the golden bytes hold, are complete, and are only added to."""

import pytest

from tests import golden

PAGE = golden.GOLDEN.read_text(encoding="utf-8")


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A copy of the golden bytes, for the command to work on."""
    path = tmp_path / "v1.txt"
    path.write_text(PAGE, encoding="utf-8")
    monkeypatch.setattr(golden, "GOLDEN", path)
    return path


def test_generated_code_writes_and_reads_exactly_the_golden_bytes():
    assert golden.faults(golden.read(PAGE)) == []


def test_every_message_field_enum_and_value_has_its_entry():
    assert golden.missing(golden.read(PAGE)) == {}, "run `make golden`"


def test_golden_bytes_are_those_of_the_encoding():
    """By hand, from protobuf's documentation of it: no code of ours or Python's own in between."""
    message = golden.read(PAGE)["ollmbridge.v1.ChatMessage"]
    assert message['role: "role"'] == bytes([1 << 3 | 2, 4, *b"role"]).hex()
    usage = golden.read(PAGE)["ollmbridge.v1.Usage"]
    assert usage["completion_tokens: 9007199254740994"] == bytes([2 << 3 | 0, 0x82, *[0x80] * 6, 0x10]).hex()


CHANGES = {
    "a field renumbered": ('  0a04726f6c65  role: "role"', '  5204726f6c65  role: "role"', "expected the bytes"),
    "a field's type changed": ("  28ed07  max_tokens: 1005", '  2a0131  max_tokens: "1"', "Couldn't parse integer"),
    "a field removed": ('role: "role"', 'rolle: "role"', 'has no field named "rolle"'),
    "a value renumbered": ("  113  ERROR_REASON_CALLER", "  213  ERROR_REASON_CALLER", "was 213, is 113"),
    "a value removed": ("ERROR_REASON_DRAINING", "ERROR_REASON_DRAINED", "ERROR_REASON_DRAINED was 104, is gone"),
    "a message removed": ("ollmbridge.v1.File\n", "ollmbridge.v1.Folder\n", "there is no such type any more"),
}


@pytest.mark.parametrize(("was", "other", "fault"), CHANGES.values(), ids=CHANGES)
def test_what_does_not_hold_any_more_is_told_and_not_mended(was, other, fault, page, capsys):
    """As after the change the other way round: the golden bytes have what the code has not."""
    assert was in PAGE
    changed = PAGE.replace(was, other, 1)
    page.write_text(changed, encoding="utf-8")
    assert golden.main() == 1
    assert fault in capsys.readouterr().out
    assert page.read_text(encoding="utf-8") == changed


@pytest.mark.parametrize(
    "gone",
    [
        '  0a04726f6c65  role: "role"\n',
        "  113  ERROR_REASON_CALLER_UNAUTHENTICATED\n",
        "ollmbridge.v1.ResponseFormat.Text\n\n",
    ],
    ids=["field", "value", "type"],
)
def test_what_is_missing_is_added_where_it_belongs(gone, page):
    page.write_text(PAGE.replace(gone, "", 1), encoding="utf-8")
    assert golden.missing(golden.read(page.read_text(encoding="utf-8"))) != {}
    assert golden.main() == 0
    assert page.read_text(encoding="utf-8") == PAGE
