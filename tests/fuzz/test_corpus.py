"""Every input that fuzzing has found worth keeping still holds what it must, without atheris.

Beside the corpus: that a target can fail at all, since a property that nothing breaks says nothing.
"""

import importlib
from random import Random
from types import ModuleType

import pytest

from bridge.core import chat, field_writers, headers, json_text, redact, sse
from bridge.upstream import framing
from tests.fuzz import http2, mutate, targets
from tests.fuzz.targets import CORPUS, TARGETS, keep, kept

CORPUS_BYTES_MAX = 300_000


def target(name: str) -> ModuleType:
    return importlib.import_module(f"tests.fuzz.{name}")


def inputs(name: str) -> list[bytes]:
    return [*target(name).seeds(), *kept(name)]


@pytest.mark.parametrize("name", TARGETS)
def test_every_kept_input_holds(name):
    assert len(kept(name)) > 10
    for data in inputs(name):
        target(name).check(data)


@pytest.mark.parametrize("name", TARGETS)
def test_kept_input_cut_short_holds(name):
    chance = Random(name)
    for data in inputs(name):
        target(name).check(data[: chance.randrange(len(data) + 1)])


def test_corpus_is_small():
    assert sum(path.stat().st_size for path in CORPUS.iterdir()) < CORPUS_BYTES_MAX


def test_inputs_of_any_bytes_are_kept_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "CORPUS", tmp_path)
    inputs = [b"", b"\n", b"\r\n", b"'\"\\", bytes(range(256)), "\u2028".encode(), b"\\n"]
    keep("sse", [*inputs, *inputs])
    assert sorted(kept("sse")) == sorted(inputs)


BROKEN = {
    "sse": (sse.SseDecoder, "_strip_bom", lambda _self, data: data),
    "stream": (chat.ChatStream, "is_whole", property(lambda self: bool(self._finished))),
    "reply": (json_text.Source, "cut", lambda _self, _path: "0"),
    "request": (field_writers, "build_fragment", lambda *_: 0),
    "headers": (headers, "_check_value", lambda _name, value: value),
    "errors": (redact, "redact", lambda text: text),
    "connection": (framing.AnswerParser, "take", lambda _self: b""),
}


@pytest.mark.parametrize("name", TARGETS)
def test_target_finds_a_translation_that_is_broken(name, monkeypatch):
    monkeypatch.setattr(*BROKEN[name])
    with pytest.raises(AssertionError):  # noqa: PT012 - which input finds it does not matter
        for data in inputs(name):
            target(name).check(data)


@pytest.mark.parametrize("name", ["reply", "request", "connection"])
def test_changed_input_holds_and_is_the_same_for_the_same_seed(name):
    data = next(target(name).seeds())
    for seed in range(200):
        changed = target(name).mutate(data, Random(seed))
        assert changed == target(name).mutate(data, Random(seed))
        target(name).check(changed)


def test_bytes_without_a_document_or_message_stay():
    assert mutate.json_within(b"no brace", Random(1)) == b"no brace"
    assert mutate.json_within(b'{"cut', Random(1)) == b'{"cut'
    assert mutate.message_within(b"\0\xff", Random(1)) == b"\0\xff"


def test_conversation_is_the_same_for_the_same_seed():
    said = [http2.conversation(Random(seed)) for seed in range(50)]
    assert said == [http2.conversation(Random(seed)) for seed in range(50)]
    assert len(set(said)) == 50
