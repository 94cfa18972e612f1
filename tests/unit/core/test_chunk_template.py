"""A stream with templates is the same as one without: the fast path renders what decoding returns, or nothing."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bridge.core.chat import ChatStream
from bridge.core.chunk_template import ChunkTemplate
from bridge.core.dialect import CHUNK as CHUNK_PLAN
from bridge.core.errors import BridgeError
from bridge.core.json_text import parse
from bridge.core.source import Source
from ollmbridge.v1.chat_completion_service_pb2 import StreamChatCompletionResponse
from tests.kit import vectors

CHUNK = b'{"id":"c","choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}],"created":1}'
# Events around a text, in which a careless reader would take another text, or none, for the delta's.
AROUND = {
    "plain": CHUNK,
    "spaces around": b' { "choices" : [ {"delta": {"content":"%b" , "role":"assistant"} } ] } ',
    "finished": b'{"choices":[{"delta":{"content":"%b"},"finish_reason":"stop"}]}',
    "with an unknown key": b'{"choices":[{"delta":{"content":"%b","mood":{"a":[1.50]}}}],"x":1e2}',
    "with usage": b'{"choices":[{"delta":{"content":"%b"}}],"usage":{"prompt_tokens":1}}',
    "another content before": b'{"x":{"content":"a"},"choices":[{"delta":{"content":"%b"}}]}',
    "another content after": b'{"choices":[{"delta":{"content":"%b"}}],"x":{"content":"a"}}',
    "content elsewhere": b'{"choices":[{"delta":{"content" :"template"}}],"x":{"content":"%b"}}',
    "content of the top": b'{"choices":[{"delta":{"role":"assistant"}}],"content":"%b"}',
    "content twice, the first of them": b'{"choices":[{"delta":{"content":"%b","content" :"template"}}]}',
    "content twice, the last of them": b'{"choices":[{"delta":{"content" :"a","content":"%b"}}]}',
    "delta twice": b'{"choices":[{"delta":{"content":"%b"},"delta":{"content" :"template"}}]}',
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
    "a space": b'{"id": "c", "choices": [{"index": 0, "delta": {"content": "%b"}, "finish_reason": null}]}',
    "two spaces": b'{"choices":[{"delta":{"content":  "%b"}}]}',
    "reasoning_content": b'{"choices":[{"delta":{"reasoning_content":"%b"}}]}',
    "reasoning": b'{"choices": [{"delta": {"role": "assistant", "reasoning": "%b"}}]}',
    "reasoning beside no content": b'{"choices":[{"delta":{"content":null,"reasoning":"%b"}}]}',
    "reasoning beside empty content": b'{"choices":[{"delta":{"content":"","reasoning_content":"%b"}}]}',
    "content beside empty reasoning": b'{"choices":[{"delta":{"content":"%b","reasoning_content":""}}]}',
    "reasoning of the choice": b'{"choices":[{"reasoning":"%b","delta":{"x":1}}]}',
    "reasoning of the top": b'{"reasoning":"%b","choices":[{"delta":{"content":"","reasoning" :"template"}}]}',
    "reasoning twice": b'{"choices":[{"delta":{"reasoning":"%b","reasoning" :"template"}}]}',
    "arguments": b'{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"%b"}}]}}]}',
    "arguments, spaced": b'{"choices": [{"delta": {"tool_calls": [{"index": 1, "function": {"arguments": "%b"}}]}}]}',
    "arguments beside content": (
        b'{"choices":[{"delta":{"content":"","tool_calls":[{"index":0,"id":"i","function":{"name":"f",'
        b'"arguments":"%b"}}]}}]}'
    ),
    "arguments of the second call": (
        b'{"choices":[{"delta":{"tool_calls":[{"index":0},{"index":1,"function":{"arguments":"%b"}}]}}]}'
    ),
    "arguments of two calls": (
        b'{"choices":[{"delta":{"tool_calls":[{"function":{"arguments":"%b"}},{"function":{"arguments":"a"}}]}}]}'
    ),
    "arguments of no tool call": b'{"choices":[{"delta":{"arguments":"%b"}}]}',
    "arguments of a call that does not fit": (
        b'{"choices":[{"delta":{"tool_calls":[{"function":{"arguments":"%b","x":1}}]}}]}'
    ),
    "arguments in a list that does not fit": (
        b'{"choices":[{"delta":{"tool_calls":[7,{"function":{"arguments":"%b"}}]}}]}'
    ),
    "text in the extra of a choice": b'{"choices":[{"delta":{},"content":"%b"}]}',
    "an alias of raw data": b'{"raw_chunk":{"content":"%b"},"choices":[{"delta":{"content" :"a"}}]}',
    "a tab": b'{"choices":[{"delta":{"content":\t"%b"}}]}',
}
TEXTS = [
    *(b"", b"a", b"template", b"\xc3\xbc", b"\\u00fc", b"\\n", b"\\\\", b'\\"', b"\\ud83d\\ude00"),
    *(b"\\ud83d", b"\\", b'"', b'a","role":"b', b"\xff", b"\x00", b"\t", b'"}}],"x":[{"y":{"z":"'),
]


texts = st.one_of(
    st.sampled_from(TEXTS), st.binary(max_size=8), st.text(max_size=8).map(lambda text: json.dumps(text)[1:-1].encode())
)
events = st.builds(lambda around, text: around.replace(b"%b", text), st.sampled_from(list(AROUND.values())), texts)
# Mostly one event again and again with another text, now and then with something else between, or with a byte amiss.
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


def read_stream(data: list[bytes], *, use_templates: bool) -> tuple[list[StreamChatCompletionResponse], str]:
    """Return the chunks, and how the stream ended with all that is known of it."""
    stream = ChatStream(use_templates=use_templates)
    chunks: list[StreamChatCompletionResponse] = []
    try:
        for event in data:
            chunks.extend(stream.feed(b"data: %b\n\n" % event))
        stream.close()
    except BridgeError as error:
        return chunks, f"{error!r} {error.__cause__!r} {stream.usage}"
    return chunks, f"whole {stream.usage}"


def compare(data: list[bytes]) -> None:
    assert read_stream(data, use_templates=True) == read_stream(data, use_templates=False)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_stream_is_the_same_as_without(around, text):
    compare([around.replace(b"%b", each) for each in (b"a", b"b", text, b"c")])
    compare([around.replace(b"%b", each) for each in (b"", b"b", text, b"")])


@given(streams)
@example([CHUNK % b"a", CHUNK % b"b" + b"\n\ndata: " + CHUNK % b"c"])
def test_stream_of_any_events_is_the_same_as_without(data):
    compare(data)


@given(st.sampled_from(list(AROUND.values())), st.lists(st.binary(max_size=12), min_size=3, max_size=6))
def test_stream_of_any_bytes_for_a_text_is_the_same_as_without(around, given):
    compare([around.replace(b"%b", b"a"), *(around.replace(b"%b", text.replace(b"\n", b"")) for text in given)])


@pytest.mark.parametrize("name", vectors.list_names("streams"))
def test_recorded_stream_is_the_same_as_without(name):
    body = vectors.read_answer("streams", name).body
    compare([line.removeprefix(b"data: ") for line in body.splitlines() if line.startswith(b"data: ")])


class Decoder:
    """The plain decoding, which counts how often it is used."""

    def __init__(self) -> None:
        self.count = 0

    def decode(self, data: bytes) -> StreamChatCompletionResponse:
        self.count += 1
        value, text = parse(data)
        return StreamChatCompletionResponse(**CHUNK_PLAN.read(value, Source(text), ()))


def count_decoded(data: list[bytes]) -> int:
    """Return how often the events of a stream are decoded."""
    decoder = Decoder()
    template = ChunkTemplate(decoder.decode)
    for event in data:
        if template.render(event) is None:
            template.remember(event, decoder.decode(event))
    return decoder.count


SERVED = ["plain", "a space", "reasoning_content", "reasoning", "reasoning beside no content", "arguments"]
SERVED += ["reasoning beside empty content", "content beside empty reasoning", "arguments, spaced"]
SERVED += ["arguments beside content", "with an unknown key"]


@pytest.mark.parametrize("name", SERVED)
def test_repeated_events_are_decoded_once_and_once_to_verify(name):
    assert count_decoded([AROUND[name].replace(b"%b", b"%d" % number) for number in range(100)]) == 2


def test_first_text_may_be_empty():
    for around in (AROUND["plain"], AROUND["arguments"], AROUND["reasoning"]):
        assert count_decoded([around.replace(b"%b", text) for text in (b"", b"a", b"b", b"\\n", b"")]) == 2


def test_events_that_repeat_nothing_are_never_verified():
    data = [(CHUNK % b"a").replace(b'"c"', b'"%d"' % number) for number in range(100)]
    assert count_decoded(data) == 100


def test_event_whose_text_has_one_quote_is_not_taken_for_an_empty_one():
    data = [CHUNK % b"a", CHUNK % b"b", CHUNK.replace(b'"%b"', b'"')]
    chunks, end = read_stream(data, use_templates=True)
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["a", "b"]
    assert "expected a JSON object in event 3" in end


def test_large_event_is_not_remembered():
    large = CHUNK % (b"a" * 20_000)
    assert count_decoded([large, large]) == 2


def test_rendered_chunk_is_the_callers_alone():
    decode = Decoder().decode
    template = ChunkTemplate(decode)
    template.remember(CHUNK % b"a", decode(CHUNK % b"a"))
    template.render(CHUNK % b"b").choices[0].delta.content = "mine"
    template.render(CHUNK % b"b").id = "mine"
    assert template.render(CHUNK % b"b") == decode(CHUNK % b"b")
