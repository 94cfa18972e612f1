import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.core.errors import Code
from bridge.core.reasons import REASONS, SERVICE_NAME, find_party, find_reason
from ollmbridge.v1 import chat_completion_service_pb2 as service_pb2
from ollmbridge.v1.error_details_pb2 import ErrorReason

ROOT = Path(__file__).parent.parent.parent.parent
PROTO = (ROOT / "protos" / "ollmbridge" / "v1" / "error_details.proto").read_text(encoding="utf-8")


def read_comments() -> dict[str, str]:
    """Return the comment of each reason in the proto, by the reason's name."""
    found = re.findall(r"((?:  //[^\n]*\n)+)  ERROR_REASON_(\w+) = \d", PROTO)
    return {name: " ".join(comment.replace("//", " ").split()) for comment, name in found}


def find_pairs(source: str) -> Iterator[tuple[str, str]]:
    """Yield the names of code and reason of each BridgeError that a source raises with both spelled out."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "BridgeError":
            code, reason, *_ = node.args
            names = [each.attr for each in (code, reason) if isinstance(each, ast.Attribute)]
            if names[-1:] and names[-1].startswith("ERROR_REASON_") and names[0] in Code.__members__:
                yield names[0], names[-1].removeprefix("ERROR_REASON_")


def test_every_reason_of_the_protos_has_a_row():
    assert set(REASONS) == {number for number in ErrorReason.values() if number}


def test_row_is_found_by_its_name():
    assert find_reason("OVERLOADED") is REASONS[ErrorReason.Value("ERROR_REASON_OVERLOADED")]
    assert find_reason("REASON_OF_A_LATER_VERSION") is None
    assert find_reason("UNSPECIFIED") is None


@pytest.mark.parametrize("number", REASONS, ids=ErrorReason.Name)
def test_row_agrees_with_the_proto(number):
    row = REASONS[number]
    comment = read_comments()[ErrorReason.Name(number).removeprefix("ERROR_REASON_")]
    codes = {code.name for code in Code if re.search(rf"\b{code.name}\b", comment)}
    assert row.domain == ("ollmbridge" if number >= 100 else "upstream.ollmbridge")
    assert row.code is None or codes == {row.code.name}
    assert row.advice
    assert not row.advice.endswith(".")


def test_codes_in_the_source_are_those_of_the_table():
    pairs = [pair for path in (ROOT / "bridge").rglob("*.py") for pair in find_pairs(path.read_text(encoding="utf-8"))]
    assert len(pairs) > 5
    for code, reason in pairs:
        expected = find_reason(reason).code
        assert expected is None or expected.name == code, reason


def test_party_is_who_has_to_act():
    assert find_party("UPSTREAM_NOT_FOUND") == find_party("CALLER_DENIED") == find_party("") == "caller"
    assert find_party("UPSTREAM_TIMEOUT") == find_party("UPSTREAM_INTERNAL") == find_party("OF_LATER") == "gateway"
    assert find_party("BRIDGE_FAULT") == find_party("OVERLOADED") == "bridge"


def test_service_name_is_that_of_the_protos():
    assert SERVICE_NAME == "ollmbridge.v1.ChatCompletionService"
    assert SERVICE_NAME in service_pb2.DESCRIPTOR.pool.FindServiceByName(SERVICE_NAME).full_name
