"""The wire format does not change: the golden bytes are those of the generated code, complete, and only added to."""

import pytest

from tests.package import golden

PAGE = golden.GOLDEN.read_text(encoding="utf-8")


@pytest.fixture
def page(tmp_path, monkeypatch):
    """Return a copy of the golden bytes, for the command to work on."""
    path = tmp_path / "v1.txt"
    path.write_text(PAGE, encoding="utf-8")
    monkeypatch.setattr(golden, "GOLDEN", path)
    return path


def test_generated_code_writes_and_reads_exactly_the_golden_bytes():
    assert golden.find_mismatches(golden.parse(PAGE)) == []


def test_every_message_field_enum_and_value_has_an_entry():
    assert golden.find_missing(golden.parse(PAGE)) == {}, "run `make golden`"


def test_golden_bytes_are_those_of_the_encoding():
    """Encoded by hand from protobuf's documentation, not by any library."""
    message = golden.parse(PAGE)["ollmbridge.v1.ChatMessage"]
    assert message['role: "role"'] == bytes([1 << 3 | 2, 4, *b"role"]).hex()
    usage = golden.parse(PAGE)["ollmbridge.v1.Usage"]
    assert usage["completion_tokens: 9007199254740994"] == bytes([2 << 3 | 0, 0x82, *[0x80] * 6, 0x10]).hex()


CHANGES = {
    "a field renumbered": ('  0a04726f6c65  role: "role"', '  5204726f6c65  role: "role"', "expected the bytes"),
    "a field's type changed": ("  28ed07  max_tokens: 1005", '  2a0131  max_tokens: "1"', "Couldn't parse integer"),
    "a field removed": ('role: "role"', 'rolle: "role"', 'has no field named "rolle"'),
    "a value renumbered": ("  113  ERROR_REASON_CALLER", "  213  ERROR_REASON_CALLER", "was 213, is 113"),
    "a value removed": ("ERROR_REASON_DRAINING", "ERROR_REASON_DRAINED", "ERROR_REASON_DRAINED was 104, is missing"),
    "a message removed": ("ollmbridge.v1.File\n", "ollmbridge.v1.Folder\n", "this type does not exist any more"),
}


@pytest.mark.parametrize(("old", "new", "mismatch"), CHANGES.values(), ids=CHANGES)
def test_entry_that_does_not_match_is_reported_and_not_rewritten(old, new, mismatch, page, capsys):
    """The test changes the file, not the code: the mismatch is the same."""
    assert old in PAGE
    changed = PAGE.replace(old, new, 1)
    page.write_text(changed, encoding="utf-8")
    assert golden.main() == 1
    assert mismatch in capsys.readouterr().out
    assert page.read_text(encoding="utf-8") == changed


@pytest.mark.parametrize(
    "entry",
    [
        '  0a04726f6c65  role: "role"\n',
        "  113  ERROR_REASON_CALLER_UNAUTHENTICATED\n",
        "ollmbridge.v1.ResponseFormat.Text\n\n",
    ],
    ids=["field", "value", "type"],
)
def test_missing_entry_is_added_in_its_place(entry, page):
    page.write_text(PAGE.replace(entry, "", 1), encoding="utf-8")
    assert golden.find_missing(golden.parse(page.read_text(encoding="utf-8"))) != {}
    assert golden.main() == 0
    assert page.read_text(encoding="utf-8") == PAGE
