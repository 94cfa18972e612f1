"""Every saved input of the fuzzer still has the properties of its target, without atheris.

Beside the corpus: that a target can fail at all, since a property that nothing breaks says nothing.
"""

import importlib
from random import Random
from types import ModuleType

import pytest

from bridge.core import chat, field_writers, redact
from bridge.core.errors import BridgeError
from bridge.core.headers import HeaderPolicy
from bridge.core.source import Source
from bridge.core.sse import SseDecoder
from bridge.server.h2 import hpack
from bridge.server.h2.sending import Sender
from bridge.server.protocols import connect
from bridge.upstream import framing
from lab.fuzz import headers, http2, mutate, sse, targets
from lab.fuzz.targets import CORPUS, TARGETS, load_inputs, save_inputs

CORPUS_BYTES_MAX = 300_000


def load_target(name: str) -> ModuleType:
    return importlib.import_module(f"lab.fuzz.{name}")


def list_inputs(name: str) -> list[bytes]:
    return [*load_target(name).seeds(), *load_inputs(name)]


@pytest.mark.parametrize("name", TARGETS)
def test_every_saved_input_passes(name):
    assert len(load_inputs(name)) > 10
    for data in list_inputs(name):
        load_target(name).check(data)


@pytest.mark.parametrize("name", TARGETS)
def test_saved_input_cut_short_passes(name):
    chance = Random(name)
    for data in list_inputs(name):
        load_target(name).check(data[: chance.randrange(len(data) + 1)])


def test_corpus_is_small():
    assert sum(path.stat().st_size for path in CORPUS.iterdir()) < CORPUS_BYTES_MAX


def test_inputs_of_any_bytes_are_saved_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "CORPUS", tmp_path)
    inputs = [b"", b"\n", b"\r\n", b"'\"\\", bytes(range(256)), "\u2028".encode(), b"\\n"]
    save_inputs("sse", [*inputs, *inputs])
    assert sorted(load_inputs("sse")) == sorted(inputs)


class BomKeepingDecoder(SseDecoder):
    """A decoder that has skipped a BOM before the stream's own."""

    def __init__(self, **options):
        super().__init__(**options)
        assert list(self.feed(b"\xef\xbb\xbf")) == []


class UncheckedPolicy(HeaderPolicy):
    """A policy that sends what it should reject."""

    def request_headers(self, metadata, *, request_id):
        try:
            return super().request_headers(metadata, request_id=request_id)
        except BridgeError:
            return [*metadata, ("x-request-id", request_id), ("user-agent", headers.PRODUCT)]


BROKEN = {
    "sse": (sse, "SseDecoder", BomKeepingDecoder),
    "stream": (chat.ChatStream, "is_whole", True),
    "reply": (Source, "cut", lambda _self, _path: "0"),
    "request": (field_writers, "build_fragment", lambda *_: 0),
    "headers": (headers, "HeaderPolicy", UncheckedPolicy),
    "errors": (redact, "redact", lambda text, *_: text),
    "connection": (framing.AnswerParser, "take", lambda _self: b""),
    "blocks": (hpack, "decode_huffman", lambda text: text),
    "conversation": (Sender, "drop", lambda _self, _stream: None),
    "web": (connect, "decode_json", lambda _text, _kind: b""),
}


@pytest.mark.parametrize("name", TARGETS)
def test_target_finds_a_translation_that_is_broken(name, monkeypatch):
    monkeypatch.setattr(*BROKEN[name])
    with pytest.raises(AssertionError):  # noqa: PT012 - which input finds it does not matter
        for data in list_inputs(name):
            load_target(name).check(data)


@pytest.mark.parametrize("name", ["reply", "request"])
def test_changed_input_passes_and_is_the_same_for_the_same_seed(name):
    data = next(load_target(name).seeds())
    for seed in range(200):
        changed = load_target(name).mutate(data, Random(seed))
        assert changed == load_target(name).mutate(data, Random(seed))
        load_target(name).check(changed)


def test_bytes_without_a_document_or_message_stay():
    assert mutate.change_json(b"no brace", Random(1)) == b"no brace"
    assert mutate.change_json(b'{"cut', Random(1)) == b'{"cut'
    assert mutate.change_message(b"\0\xff", Random(1)) == b"\0\xff"


def test_conversation_is_the_same_for_the_same_seed():
    conversations = [http2.build_conversation(Random(seed)) for seed in range(50)]
    assert conversations == [http2.build_conversation(Random(seed)) for seed in range(50)]
    assert len(set(conversations)) == 50
