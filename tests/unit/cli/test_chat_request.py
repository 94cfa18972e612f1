"""Tests of bridge/cli/chat_request.py: the request from the options and from standard input."""

import argparse
import io
import sys

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.cli.chat_request import build_request, list_hints, read_request
from bridge.cli.defaults import UsageError


def parse_options(*options: str, prompt: str | None = "Hi", system: str | None = None) -> argparse.Namespace:
    return argparse.Namespace(model="m", system=system, prompt=prompt, options=list(options))


def test_request_is_decoded_from_the_json():
    request = build_request(
        {
            "model": "m",
            "messages": [{"role": "user", "content": "Hi"}],
            "temperature": 0.5,
            "ollm::tags": {"team": "a"},
            "top_k": 40,
        }
    )
    assert request.model == "m"
    assert request.messages[0].text == "Hi"
    assert request.temperature == 0.5
    assert dict(request.ollm.tags) == {"team": "a"}
    assert dict(request.extra_json) == {"top_k": "40"}


def test_json_that_is_not_a_request_is_a_usage_error():
    with pytest.raises(UsageError, match="the request is not JSON of this API"):
        build_request({"model": orjson.Fragment("[" * 2000 + "]" * 2000)})


def test_value_that_is_no_json_is_a_text():
    request = read_request(parse_options("reasoning_effort=low", "temperature=0.5", "user=", 'verbosity="high"'))
    assert (request.reasoning_effort, request.temperature) == ("low", 0.5)
    assert (request.user, request.verbosity) == ("", "high")


@given(st.text(st.characters(exclude_categories=())))
def test_any_value_can_be_given(text):
    read_request(parse_options(f"verbosity={text}"))


@given(st.text(st.characters(exclude_categories=())), st.text(st.characters(exclude_categories=())))
def test_any_prompt_and_model_can_be_given(prompt, model):
    options = parse_options(prompt=f"x{prompt}", system=prompt)
    options.model = f"m{model}"
    read_request(options)


def test_bytes_that_an_ascii_locale_cannot_decode_count_as_utf_8():
    escaped = "Grüße 世界".encode().decode("ascii", "surrogateescape")
    request = read_request(parse_options(f"user={escaped}", prompt=escaped, system=escaped))
    assert [each.text for each in request.messages] == ["Grüße 世界"] * 2
    assert request.user == "Grüße 世界"


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_standard_input_in_another_encoding_is_read(encoding, monkeypatch):
    data = "Grüße".encode() + b"\xff\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding=encoding))
    assert read_request(parse_options(prompt="-")).messages[0].text == "Grüße\ufffd"


@pytest.mark.parametrize("prompt", ["-", None])
def test_closed_standard_input_is_a_usage_error(prompt, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UsageError, match="closed standard input"):
        read_request(parse_options(prompt=prompt))


@pytest.mark.parametrize("prompt", ["-", None])
def test_prompt_is_read_from_standard_input(prompt, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\nthere\n"))
    request = read_request(parse_options(prompt=prompt, system="Be brief."))
    assert [(each.role, each.text) for each in request.messages] == [("system", "Be brief."), ("user", "Hello\nthere")]


def test_terminal_without_a_prompt_is_a_usage_error(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    with pytest.raises(UsageError, match="expected a prompt"):
        read_request(parse_options(prompt=None))


HINTS = {
    "misspelled": (
        ["temprature=0.2"],
        ["-o temprature: not a key of the API, sent as it is (did you mean temperature?)"],
    ),
    "misspelled option of the gateway": (
        ["ollm::tag={}"],
        ["-o ollm::tag: not a key of the API, sent as it is (did you mean ollm::tags?)"],
    ),
    "known": (["temperature=0.2", "ollm::tags={}", "logit_bias={}"], []),
    "like no other": (["mirostat=2"], []),
}


@pytest.mark.parametrize(("options", "hints"), HINTS.values(), ids=HINTS)
def test_key_that_looks_misspelled_has_a_hint(options, hints):
    assert list_hints(options) == hints
