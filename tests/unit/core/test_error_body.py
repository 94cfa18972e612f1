import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.error_body import read_document, read_excerpt

ENVELOPE = '{"error": {"message": "modèle 模型"}}'
VALUE = json.loads(ENVELOPE)


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", "gbk", "GB18030", "utf-16", "utf-16le", "utf-32", "shift_jis"])
def test_body_is_read_in_the_charset_of_its_header(charset):
    text = ENVELOPE if charset != "shift_jis" else ENVELOPE.replace("è", "").replace("模", "")
    body = text.encode(charset)
    value, source = read_document(body, f'application/json; charset="{charset}"')
    assert value == json.loads(text)
    assert source.cut(("error",)) == text[10:-1]


def test_body_that_is_utf8_is_read_as_such_whatever_its_header_says():
    assert read_document(ENVELOPE.encode(), "application/json; charset=iso-8859-1")[0] == VALUE


def test_latin1_is_read():
    body = '{"error": "modèle"}'.encode("latin-1")
    assert read_document(body, "text/plain;charset=ISO-8859-1")[0] == {"error": "modèle"}
    assert read_excerpt(b"mod\xe8le", "text/plain; charset=iso-8859-1")["body_excerpt"] == "modèle"


@pytest.mark.parametrize("charset", ["punycode", "idna", "undefined", "unicode_escape", "hex", "rot13", "nonsense", ""])
def test_charset_that_is_none_of_the_web_is_utf8(charset):
    assert read_excerpt(b"\xffx", f"text/plain; charset={charset}")["body_excerpt"] == "\ufffdx"


@pytest.mark.parametrize(
    "body",
    [
        "{}\n{}",
        '{}{"detail": "x"}',
        "{}\0",
        "  {} data: [DONE]",
        "data: {}\n\n",
        "data:{}",
        'event: error\ndata: {}\n\ndata: {"x": 1}\n\n',
        ": comment\n\ndata:\n\ndata: {}\n\n",
        "error: {}\n\n",
        "\n\nid: 1\ndata: {}\n\n",
        "data: {\ndata: }\n\n",
    ],
)
def test_first_document_counts_and_what_it_is_wrapped_in_does_not(body):
    value, source = read_document(
        body.replace("{}", ENVELOPE).replace("{\n", '{"error":\n').replace(": }", ": 1}").encode()
    )
    assert value in (VALUE, {"error": 1})
    assert json.loads(source.cut(())) == value


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"text: {}", b"{", b"[" * 100_000, b"NaN {}", b'"a" {}', b"data: x", b"\xff"]
)
def test_body_without_a_document_has_no_value(body):
    assert read_document(body)[0] is None


def test_character_that_the_excerpt_cuts_is_dropped():
    found = read_excerpt("模".encode() * 10_000, "text/html; charset=iso-8859-1")
    assert set(found["body_excerpt"]) == {"模"}
    assert found["truncated"]


@given(st.binary(max_size=60), st.text(max_size=10))
def test_any_body_is_read(body, charset):
    read_document(body, f"x; charset={charset}")
    assert not read_excerpt(body, charset)["truncated"]
