"""Commands come from a client's README, and a client that fails or does not print lines fails the test."""

import base64

import pytest

from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionResponse
from tests.interop.clients import programs


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A client's folder whose README can be written."""
    monkeypatch.setattr(programs, "CLIENTS", tmp_path)
    (tmp_path / "mine").mkdir()
    return tmp_path / "mine"


def test_commands_are_the_lines_of_the_first_block(folder):
    (folder / "README.md").write_text("# Mine\n\n```sh\none\ntwo \\\n  more\nthree\n```\n\n```sh\nfour\n```\n")
    assert programs.read_commands("mine") == ["one", "two more", "three"]


@pytest.mark.parametrize("block", ["", "```sh\none\ntwo\n```\n", "```sh\none\ntwo\nthree\nfour\n```\n"])
def test_readme_without_three_commands_is_refused(folder, block):
    (folder / "README.md").write_text(f"# Mine\n\n{block}")
    with pytest.raises(AssertionError, match="expected three commands"):
        programs.read_commands("mine")


def test_failed_build_reports_its_output(folder):
    (folder / "README.md").write_text("```sh\ntrue\necho no compiler; false\nthree\n```\n")
    with pytest.raises(AssertionError, match="no compiler"):
        programs.build("mine")


def test_run_returns_lines_by_case(folder):
    command = """echo '{"case": "unary", "text": "é"}'; echo '{"text": 1.0, "case": "tls"}'; echo noise >&2"""
    assert programs.run(command, folder, {}) == {"unary": {"text": "é"}, "tls": {"text": 1}}


@pytest.mark.parametrize(
    ("command", "error", "text"),
    [
        ('echo \'{"case": "unary"}\'; echo broken >&2; false', AssertionError, "broken"),
        ("echo noise", ValueError, "Expecting value"),
        ('echo \'{"case": "unary"}\'; echo \'{"case": "unary"}\'', AssertionError, "printed a case twice"),
        ("echo '{}'", KeyError, "case"),
    ],
    ids=["failed", "no JSON", "twice", "no case"],
)
def test_client_that_does_not_print_lines_fails(folder, command, error, text):
    with pytest.raises(error, match=text):
        programs.run(command, folder, {})


def test_client_gets_the_variables(folder):
    command = 'echo "{\\"case\\": \\"unary\\", \\"at\\": \\"$BRIDGE_ADDRESS\\"}"'
    assert programs.run(command, folder, {"BRIDGE_ADDRESS": "127.0.0.1:1"}) == {"unary": {"at": "127.0.0.1:1"}}


def test_line_for_one_client_replaces_the_common_line(folder):
    lines = ['{"case": "cancel", "client": "mine", "code": null}', '{"case": "cancel", "code": "CANCELLED"}']
    (folder.parent / "expected.jsonl").write_text("\n".join([*lines, '{"case": "unary"}\n']))
    assert programs.read_expected("mine") == {"cancel": {"code": None}, "unary": {}}
    assert programs.read_expected("other") == {"cancel": {"code": "CANCELLED"}, "unary": {}}
    assert programs.find_differences() == {("mine", "cancel")}


def test_client_with_a_kit_prints_what_the_vectors_expect(monkeypatch):
    assert not programs.KIT_CASES & programs.read_expected("mine").keys()
    monkeypatch.setattr(programs, "KITS", {"mine"})
    expected = programs.read_expected("mine")
    assert expected.keys() >= programs.KIT_CASES
    assert expected["accumulate"]["responses"]["nothing"]["object"] == "chat.completion"
    assert expected["failure"]["failures"]["no-message"]["code"] == "CANCELLED"


def test_responses_are_compared_as_json(folder):
    packed = base64.b64encode(CreateChatCompletionResponse(model="m", extra_json={"x": "1.0"}).SerializeToString())
    command = f"""echo '{{"case": "accumulate", "responses": {{"a": "{packed.decode()}"}}}}'"""
    responses = programs.run(command, folder, {})["accumulate"]["responses"]
    assert responses == {"a": {"id": "", "object": "", "created": 0, "model": "m", "x": 1.0}}


def test_missing_programs_are_named(monkeypatch):
    monkeypatch.setitem(programs.NEEDS, "mine", ("sh", "no-such-compiler"))
    assert programs.find_missing("mine") == ["no-such-compiler"]
