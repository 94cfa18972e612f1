"""How a stream ends, beyond the plain cases of test_chat.py: errors anywhere, unreadable events, last events."""

import json
import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.chat_stream import ChatStream
from bridge.core.errors import BridgeError, Code
from bridge.core.status import to_grpc_status
from ollmbridge.v1 import error_details_pb2 as details_pb2
from ollmbridge.v1.chat_completion_service_pb2 import StreamChatCompletionResponse
from tests.kit.oracle import judge_stream

DONE = b"data: [DONE]\n\n"
BAD_FINISH = b'data: {"choices": [{"finish_reason": "stop"}]'
INVALID = "INTERNAL INVALID_UPSTREAM_RESPONSE"
INCOMPLETE = "ABORTED INCOMPLETE_COMPLETION"
STREAM_ERROR = "INTERNAL UPSTREAM_STREAM_ERROR"
LOST = BridgeError(Code.ABORTED, details_pb2.ERROR_REASON_UPSTREAM_DISCONNECTED, "lost")


def render(*values: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(value).encode() + b"\n\n" for value in values)


def make_chunk(content: str | None = None, finish_reason: str | None = None, **beside: Any) -> dict[str, Any]:
    delta = {} if content is None else {"content": content}
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason, **beside}]}


TEXT = render(make_chunk("a"))
FINISH = render(make_chunk(None, "stop"))
WHOLE = TEXT + FINISH


def read(
    *pieces: bytes, failure: BridgeError | None = None, is_framed: bool = True
) -> tuple[str, str, BridgeError | None]:
    """Return the text that came, how the stream ended, and its error; a failure is a connection that broke."""
    stream = ChatStream()
    text = ""
    failed = None
    try:
        for piece in pieces:
            for chunk in stream.feed(piece):
                text += find_text(chunk)
        for chunk in stream.end() if failure is None and is_framed else ():
            text += find_text(chunk)
        stream.close(failure)
    except BridgeError as error:
        failed = error
    if failed is None:
        return text, "OK", None
    assert (failed.upstream.http_status, failed.upstream.chunks_delivered) == (200, stream.chunks)
    return text, f"{failed.code.name} {failed.reason_name}", failed


def find_text(chunk: StreamChatCompletionResponse) -> str:
    return "".join(choice.delta.content for choice in chunk.choices)


@pytest.mark.parametrize(
    ("event", "outcome", "message"),
    [
        (render(make_chunk("b", "error", error={"code": 502, "message": "m"})), "ABORTED UPSTREAM_STREAM_ERROR", "m"),
        (render({"choices": [{"delta": {"error": "m"}}]}), STREAM_ERROR, "m"),
        (render([{"error": {"code": 429, "message": "m"}}]), "RESOURCE_EXHAUSTED UPSTREAM_STREAM_ERROR", "m"),
        (render({"object": "error", "message": "m", "code": 400}), "INVALID_ARGUMENT UPSTREAM_STREAM_ERROR", "m"),
        (render({"detail": "m"}), STREAM_ERROR, "m"),
        (b'error: {"code":400,"message":"m"}\n\n', "INVALID_ARGUMENT UPSTREAM_STREAM_ERROR", "m"),
        (b'error: {"code":400,"message":"m"}\n', "INVALID_ARGUMENT UPSTREAM_STREAM_ERROR", "m"),
        (b'error: ["m"]\n\n', STREAM_ERROR, '["m"]'),
        (b'{"error": {"code": 429, "message": "m"}}\n', "RESOURCE_EXHAUSTED UPSTREAM_STREAM_ERROR", "m"),
        (b'{\n "error": {\n  "message": "m"\n }\n}\n', STREAM_ERROR, "m"),
        (b'event: error\ndata: {"message": "m"}', STREAM_ERROR, "m"),
        (render(make_chunk("b", "network_error")), "ABORTED UPSTREAM_STREAM_ERROR", None),
    ],
)
@pytest.mark.parametrize("before", [b"", TEXT, WHOLE])
def test_error_anywhere_in_a_stream_ends_it(event, outcome, message, before):
    text, found, error = read(before + event)
    assert (text, found) == ("a" if before else "", outcome)
    assert message is None or error.message == message


@pytest.mark.parametrize("content", ["", "b"])
def test_unavailable_is_kept_for_an_error_beside_which_no_text_stands(content):
    event = render(make_chunk(content, error={"code": 503, "message": "m"}))
    assert read(event)[1] == ("ABORTED" if content else "UNAVAILABLE") + " UPSTREAM_STREAM_ERROR"


@pytest.mark.parametrize("name", ["ping", "heartbeat", "keep-alive", "Ping"])
@pytest.mark.parametrize("data", ["", "now", "{", "2026-11-29"])
def test_events_that_keep_the_connection_alive_are_no_gap(name, data):
    assert read(TEXT, f"event: {name}\ndata: {data}\n\n".encode(), FINISH, DONE)[:2] == ("a", "OK")


@pytest.mark.parametrize(
    "event", [b"data:\n\n", b"data: \n\n", b"data\n\n", b"data:\ndata:\n\n", b"event: x\ndata:\n\n"]
)
def test_event_without_data_is_no_gap(event):
    assert read(TEXT, event, FINISH, DONE)[:2] == ("a", "OK")
    assert read(event)[1] == INCOMPLETE


@pytest.mark.parametrize("event", [b"data: x\n\n", b"event: close\ndata: close\n\n", b"data: []\n\n", b"data: {\n\n"])
def test_event_that_cannot_be_read_is_a_gap_unless_the_completion_is_whole(event):
    assert read(TEXT, event, FINISH, DONE)[:2] == ("a", INVALID)
    assert read(WHOLE, event)[:2] == ("a", "OK")
    assert read(WHOLE, render(make_chunk("b")), event)[:2] == ("ab", INVALID)


def test_event_that_is_too_large_is_no_failure_behind_a_whole_completion():
    stream = ChatStream(event_bytes_max=200)
    list(stream.feed(WHOLE + b"data: " + b"x" * 300))
    assert stream.done
    stream.close()


def test_words_of_an_event_that_cannot_be_read_are_in_the_excerpt_and_not_in_the_message():
    words = "error: CUDA out of memory; the engine restarts"
    _, found, error = read(TEXT, f"data: {words}\n\n".encode())
    assert (found, error.upstream.body_excerpt) == (INVALID, words)
    assert "CUDA" not in error.message


@pytest.mark.parametrize("choices", [b'"none"', b"{}", b"[null]", b"[[]]", b"5"])
def test_choices_of_a_wrong_shape_are_an_invalid_response(choices):
    for before in (b"", WHOLE):
        _, found, error = read(before, b'data: {"choices": %b}\n\n' % choices)
        assert found == INVALID
        assert choices.decode() in error.upstream.body_excerpt


@pytest.mark.parametrize(
    ("body", "outcome", "excerpt"),
    [
        (b"<html><h1>502 Bad Gateway</h1></html>", INVALID, "502 Bad Gateway"),
        (b'{"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]}\n', INVALID, "Hi"),
        (b'{"choices": []}\n{"choices": []}\n', INVALID, "choices"),
        (b"upstream connect error", INVALID, "upstream connect error"),
        (b'{"error": {"message": "m", "code": 429}}', "RESOURCE_EXHAUSTED UPSTREAM_STREAM_ERROR", ""),
        (b": ping\n\n", INCOMPLETE, ""),
        (b"", INCOMPLETE, ""),
        (b"\n\nid: 1\nretry: 5\n\n", INCOMPLETE, ""),
    ],
)
@pytest.mark.parametrize("is_framed", [True, False])
def test_stream_without_an_event_is_read_as_an_error_body(body, outcome, excerpt, is_framed):
    for pieces in ([body], [body[at : at + 1] for at in range(len(body))]):
        _, found, error = read(*pieces, is_framed=is_framed)
        assert found == outcome
        assert excerpt in error.upstream.body_excerpt


def test_text_outside_of_events_is_in_the_excerpt_of_an_incomplete_completion():
    _, found, error = read(TEXT, b"fatal: out of memory\n")
    assert (found, error.upstream.body_excerpt) == (INCOMPLETE, "fatal: out of memory\n")


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\r"])
def test_last_event_counts_without_its_blank_line_at_a_clean_end_alone(end):
    last = FINISH.rstrip() + end
    assert read(TEXT, last)[:2] == ("a", "OK")
    assert read(TEXT, last, is_framed=False)[:2] == ("a", INCOMPLETE)
    assert read(TEXT, last, failure=LOST)[:2] == ("a", "ABORTED UPSTREAM_DISCONNECTED")
    assert read(TEXT, render(make_chunk("b", "stop")).rstrip() + end)[:2] == ("ab", "OK")
    assert read(TEXT, FINISH, b"data: [DONE]" + end)[:2] == ("a", "OK")


@pytest.mark.parametrize("length", range(1, len(BAD_FINISH)))
def test_last_event_that_is_cut_does_not_count(length):
    assert read(TEXT, BAD_FINISH[:length])[:2] == ("a", INCOMPLETE)


REOPENED = [
    render(make_chunk("a", "stop"), make_chunk("b")),
    render(make_chunk("a", "stop"), make_chunk("b", "stop")),
    render(make_chunk("a"), make_chunk(None, "stop"), make_chunk("b"), make_chunk(None, "stop")),
]


@pytest.mark.parametrize("stream", REOPENED)
def test_text_behind_the_finish_reason_is_an_end_only_if_the_upstream_says_so(stream):
    assert read(stream, failure=LOST)[:2] == ("ab", "ABORTED UPSTREAM_DISCONNECTED")
    assert read(stream, is_framed=False)[:2] == ("ab", INCOMPLETE)
    assert read(stream)[:2] == ("ab", "OK")
    assert read(stream, DONE, is_framed=False)[:2] == ("ab", "OK")
    assert read(stream, DONE, failure=LOST)[:2] == ("ab", "OK")


NEXT_LINE = render(make_chunk("c", "stop"))[:-2]


@pytest.mark.parametrize(
    "cut",
    [*(NEXT_LINE[:size] for size in range(1, len(NEXT_LINE))), b"data:\n", b"event: x\n", b"event: ping\ndata: 1\n"],
)
@pytest.mark.parametrize("stream", REOPENED)
def test_body_that_ends_within_an_event_is_no_end_behind_text_behind_the_finish_reason(stream, cut):
    assert read(stream, cut)[:2] == ("ab", INCOMPLETE)


@pytest.mark.parametrize("stream", REOPENED)
def test_body_that_ends_behind_its_last_event_is_an_end_without_a_blank_line_too(stream):
    usage = render({"choices": [], "usage": {"total_tokens": 1}})
    assert read(stream, NEXT_LINE)[:2] == ("abc", "OK")
    assert read(stream, usage[:-2])[:2] == ("ab", "OK")
    assert read(stream, b"data: [DONE]")[:2] == ("ab", "OK")
    assert read(stream, b": comment\n")[:2] == ("ab", "OK")
    assert read(stream, b"Internal Server Error\n")[:2] == ("ab", INCOMPLETE)


def test_hidden_usage_without_its_blank_line_is_a_whole_event():
    stream = ChatStream(hides_usage=True)
    assert len(list(stream.feed(REOPENED[1]))) == 2
    list(stream.feed(render({"choices": [], "usage": {"total_tokens": 1}})[:-2]))
    assert not list(stream.end())
    stream.close()


@pytest.mark.parametrize(
    ("stream", "may_go_on"),
    [
        (WHOLE, False),
        (FINISH, True),
        (render(make_chunk("a", "stop")), True),
        (render(make_chunk("a", "stop"), {"choices": [], "usage": {"total_tokens": 1}}), False),
        (render(make_chunk("a", "stop"), {"usage": {"total_tokens": 1}}), False),
        (render({**make_chunk("a", "stop"), "usage": {"total_tokens": 1}}), True),
    ],
)
def test_whole_completion_may_go_on_if_its_first_chunk_has_a_finish_reason(stream, may_go_on):
    found = ChatStream()
    list(found.feed(stream))
    assert (found.is_whole, found.may_go_on) == (True, may_go_on)


def test_text_behind_a_finish_reason_with_usage_is_seen_too():
    finish = {**make_chunk(None, "stop"), "usage": {"total_tokens": 1}}
    stream = render(make_chunk("a"), make_chunk("b"), finish, make_chunk("c"))
    assert read(stream, failure=LOST)[:2] == ("abc", "ABORTED UPSTREAM_DISCONNECTED")


@pytest.mark.parametrize("secret", ["correct-horse-battery-staple", "own"])
def test_own_key_is_in_no_status_of_a_stream(secret):
    for event in (f"data: bad key {secret}", f'data: {{"error": {{"message": "bad key {secret}"}}}}', f"key {secret}"):
        _, _, error = read(event.encode() + b"\n\n")
        status = to_grpc_status(error, secrets=("another", secret))
        assert re.search(rf"\b{secret}\b".encode(), repr(status).encode()) is None


PIECES = st.lists(
    st.sampled_from(
        [
            *(
                TEXT,
                FINISH,
                DONE,
                b"data:\n\n",
                b"data: x\n\n",
                b"event: ping\ndata: 1\n\n",
                b"error: {}\n\n",
                b": c\n\n",
            ),
            *(b"<html>\n", b'{"error": "m"}\n', render({"error": {"code": 0}}), render({"choices": 5}), b"data: [DON"),
            *(render(make_chunk("b", "none")), render(make_chunk("b", "abort")), FINISH.rstrip(), b"event: error\n"),
            *(render(make_chunk("b", "stop")), NEXT_LINE, b"data:\n", b"event: x\n", b"x\n"),
        ]
    ),
    max_size=5,
).map(b"".join)


@given(PIECES, st.lists(st.integers(0, 400), max_size=6), st.sampled_from([None, LOST]))
def test_any_stream_ends_alike_however_it_is_cut(body, offsets, failure):
    edges = [0, *sorted(min(offset, len(body)) for offset in offsets), len(body)]
    pieces = [body[start:end] for start, end in pairwise(edges)]
    assert read(*pieces, failure=failure)[:2] == read(body, failure=failure)[:2]


@given(PIECES, st.sampled_from([None, LOST]))
def test_any_stream_is_ok_only_if_a_second_reader_finds_it_whole(body, failure):
    is_whole = judge_stream(body, is_lost=failure is not None).end == "whole"
    assert (read(body, failure=failure)[1] == "OK") == is_whole
