"""Tests of bridge/core/refrain.py: it gives what decoding gives, or nothing."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bridge.core import chat
from bridge.core.chat import ChatStream
from bridge.core.errors import BridgeError
from bridge.core.refrain import Refrain
from ollmbridge.v1.chat_completion_service_pb2 import StreamChatCompletionResponse
from tests.core import vectors

CHUNK = b'{"id":"c","choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}],"created":1}'
# Events around a text, where a careless reader would take another text, or none, for the delta's content.
AROUND = {
    "plain": CHUNK,
    "spaces around": b' { "choices" : [ {"delta": {"content":"%b" , "role":"assistant"} } ] } ',
    "finished": b'{"choices":[{"delta":{"content":"%b"},"finish_reason":"stop"}]}',
    "with an unknown key": b'{"choices":[{"delta":{"content":"%b","mood":{"a":[1.50]}}}],"x":1e2}',
    "with usage": b'{"choices":[{"delta":{"content":"%b"}}],"usage":{"prompt_tokens":1}}',
    "another content before": b'{"x":{"content":"a"},"choices":[{"delta":{"content":"%b"}}]}',
    "another content after": b'{"choices":[{"delta":{"content":"%b"}}],"x":{"content":"a"}}',
    "content elsewhere": b'{"choices":[{"delta":{"content" :"refrain"}}],"x":{"content":"%b"}}',
    "content of the top": b'{"choices":[{"delta":{"role":"assistant"}}],"content":"%b"}',
    "content twice, the first of them": b'{"choices":[{"delta":{"content":"%b","content" :"refrain"}}]}',
    "content twice, the last of them": b'{"choices":[{"delta":{"content" :"a","content":"%b"}}]}',
    "delta twice": b'{"choices":[{"delta":{"content":"%b"},"delta":{"content" :"refrain"}}]}',
    "in a string": b'{"choices":[{"delta":{"role":"\\"content\\":\\"%b"}}]}',
    "key that ends so": b'{"choices":[{"delta":{"x\\"content":"%b","content" :"a"}}]}',
    "delta that does not fit": b'{"choices":[{"index":"0","delta":{"content":"%b"}}]}',
    "choice that does not fit": b'{"choices":[{"delta":{"content":"%b","tool_calls":7}},7]}',
    "two choices": b'{"choices":[{"delta":{"content":"%b"}},{"index":1,"delta":{"content":"a"}}]}',
    "empty error": b'{"error":null,"choices":[{"delta":{"content":"%b"}}]}',
    "error": b'{"error":{"content":"%b"},"choices":[{"delta":{"content" :"a"}}]}',
    "lone surrogate beside": b'{"id":"\\ud83d","choices":[{"delta":{"content":"%b"}}]}',
    "no object": b'[{"content":"%b"}]',
    "no JSON": b'{"choices":[{"delta":{"content":"%b"}}]',
    "no text": b'{"choices":[{"delta":{"content":%b}}]}',
}
TEXTS = [
    *(b"", b"a", b"refrain", b"\xc3\xbc", b"\\u00fc", b"\\n", b"\\\\", b'\\"', b"\\ud83d\\ude00"),
    *(b"\\ud83d", b"\\", b'"', b'a","role":"b', b"\xff", b"\x00", b"\t", b'"}}],"x":[{"y":{"z":"'),
]

texts = st.one_of(
    st.sampled_from(TEXTS), st.binary(max_size=8), st.text(max_size=8).map(lambda text: json.dumps(text)[1:-1].encode())
)
events = st.builds(lambda around, text: around.replace(b"%b", text), st.sampled_from(list(AROUND.values())), texts)
# Mostly one event's refrain again and again, now and then with something else between, or a byte amiss.
streams = st.one_of(
    st.builds(
        lambda around, given: [around.replace(b"%b", text) for text in given],
        st.sampled_from(list(AROUND.values())),
        st.lists(texts, min_size=2, max_size=5),
    ),
    st.lists(events, max_size=5),
    st.builds(
        lambda event, at, byte: [event, event[: at % len(event)] + byte + event[at % len(event) :], event],
        events,
        st.integers(0, 1000),
        st.binary(max_size=2),
    ),
)


def seen(stream: ChatStream, data: list[bytes]) -> tuple[list[StreamChatCompletionResponse], str]:
    """Give the chunks, and how the stream ended, all that is told of it included."""
    chunks: list[StreamChatCompletionResponse] = []
    try:
        for event in data:
            chunks.extend(stream.feed(b"data: %b\n\n" % event))
        stream.close()
    except BridgeError as error:
        return chunks, f"{error!r} {error.__cause__!r} {stream.usage}"
    return chunks, f"whole {stream.usage}"


def plain() -> ChatStream:
    stream = ChatStream()
    stream._refrain.note = lambda *_: None
    return stream


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_stream_is_the_same_as_without(around, text):
    data = [around.replace(b"%b", each) for each in (b"a", b"b", text, b"c")]
    assert seen(ChatStream(), data) == seen(plain(), data)


@given(streams)
@example([CHUNK % b"a", CHUNK % b"b" + b"\n\ndata: " + CHUNK % b"c"])
def test_stream_of_any_events_is_the_same_as_without(data):
    assert seen(ChatStream(), data) == seen(plain(), data)


@pytest.mark.parametrize("name", vectors.names("streams"))
def test_recorded_stream_is_the_same_as_without(name):
    body = vectors.answer("streams", name).body
    events = [line.removeprefix(b"data: ") for line in body.splitlines() if line.startswith(b"data: ")]
    assert seen(ChatStream(), events) == seen(plain(), events)


def decoded_of(monkeypatch, data: list[bytes]) -> int:
    """Count how often a stream's events were decoded."""
    counted = []
    monkeypatch.setattr(chat, "parse", lambda text, parse=chat.parse: counted.append(text) or parse(text))
    seen(ChatStream(), data)
    return len(counted)


def test_repeated_events_are_decoded_once_and_once_in_trial(monkeypatch):
    assert decoded_of(monkeypatch, [CHUNK % b"%d" % number for number in range(100)]) == 2


def test_events_that_repeat_nothing_are_tried_never(monkeypatch):
    data = [(CHUNK % b"a").replace(b'"c"', b'"%d"' % number) for number in range(100)]
    assert decoded_of(monkeypatch, data) == 100


def test_event_whose_text_has_one_quote_is_not_taken_for_an_empty_one():
    data = [CHUNK % b"a", CHUNK % b"b", CHUNK.replace(b'"%b"', b'"')]
    chunks, end = seen(ChatStream(), data)
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["a", "b"]
    assert "expected a JSON object in event 3" in end


def test_large_event_is_not_kept():
    refrain = Refrain(chat._decoded)
    large = CHUNK % (b"a" * 20_000)
    refrain.note(large, chat._decoded(large))
    assert refrain.chunk(large) is None


def test_chunk_that_was_given_out_is_nobodys_but_the_callers():
    refrain = Refrain(chat._decoded)
    refrain.note(CHUNK % b"a", chat._decoded(CHUNK % b"a"))
    refrain.chunk(CHUNK % b"b").choices[0].delta.content = "mine"
    refrain.chunk(CHUNK % b"b").id = "mine"
    assert refrain.chunk(CHUNK % b"b") == chat._decoded(CHUNK % b"b")
