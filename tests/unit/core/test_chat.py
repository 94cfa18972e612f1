import json
import re
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.core.chat import ChatStream, decode_reply, decode_request_json, encode_request, requested_resource
from bridge.core.errors import Asked, BridgeError, Code, Resource
from bridge.core.status import to_grpc_status
from ollmbridge.v1 import error_details_pb2 as details_pb2
from ollmbridge.v1.chat_completion_service_pb2 import (
    CreateChatCompletionRequest,
    StreamChatCompletionResponse,
)
from tests.kit import vectors
from tests.kit.oracle import judge_stream, split_events

STREAMS = vectors.list_names("streams")
REPLIES = vectors.list_names("replies")
HELLO: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "text": "hi"}]}
DONE = b"data: [DONE]\n\n"


def render_events(*values: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(value).encode() + b"\n\n" for value in values)


def make_chunk(
    content: str | None = None, finish_reason: str | None = None, index: Any = 0, **beside: Any
) -> dict[str, Any]:
    delta = {} if content is None else {"content": content}
    return {"choices": [{"index": index, "delta": delta, "finish_reason": finish_reason}], **beside}


class Outcome(NamedTuple):
    chunks: list[StreamChatCompletionResponse]
    code: str
    reason: str = ""
    error: BridgeError | None = None


def read_stream(*pieces: bytes, failure: BridgeError | None = None, **options: Any) -> Outcome:
    """Return what a caller of the stream sees."""
    stream = ChatStream(**options)
    chunks: list[StreamChatCompletionResponse] = []
    failed = None
    try:
        for piece in pieces:
            chunks.extend(stream.feed(piece))
        stream.close(failure)
    except BridgeError as error:
        failed = error
    if failed is None:
        return Outcome(chunks, "OK")
    assert failed.upstream.chunks_delivered == len(chunks)
    return Outcome(chunks, failed.code.name, failed.reason_name, failed)


OK = ("OK", "")
INCOMPLETE = ("ABORTED", "INCOMPLETE_COMPLETION")
INVALID = ("INTERNAL", "INVALID_UPSTREAM_RESPONSE")


# Recorded streams


@pytest.mark.parametrize("name", STREAMS)
def test_recorded_stream_has_its_outcome(name):
    expected = vectors.read_expected("streams")[name]
    outcome = read_stream(*vectors.read_answer("streams", name).pieces)
    assert (outcome.code if outcome.code == "OK" else [outcome.code, outcome.reason]) == expected["outcome"]
    assert len(outcome.chunks) == expected["chunks"]
    text, finish_reasons = "", {}
    for each in outcome.chunks:
        for choice in each.choices:
            text += choice.delta.content if choice.index == 0 else ""
            finish_reasons[str(choice.index)] = choice.finish_reason or finish_reasons.get(str(choice.index))
    assert (text, finish_reasons) == (expected["text"], expected["finish_reasons"])


class Phase(NamedTuple):
    """From a number of bytes on: how many chunks have come, and what the end of the body would mean."""

    start: int
    chunks: int
    outcome: tuple[str, str]


ENDS = {"whole": OK, "incomplete": INCOMPLETE, "invalid": INVALID, "error": ("INTERNAL", "UPSTREAM_STREAM_ERROR")}


def find_phases(body: bytes) -> list[Phase]:
    """Return the oracle's judgement of a stream cut short, at the ends of its events before [DONE]."""
    phases = [Phase(0, 0, INCOMPLETE)]
    for blank in re.finditer(rb"(?:\r\n|\n)(?:\r|\n)", body.partition(b"data: [DONE]")[0]):
        judged = judge_stream(body[: blank.end()], is_lost=False)
        phases.append(Phase(blank.end(), len(judged.chunks), ENDS[judged.end]))
        if judged.end in {"invalid", "error"}:
            break
    return phases


@pytest.mark.parametrize("name", STREAMS)
def test_stream_cut_short_at_every_offset_is_ok_only_if_it_is_whole(name):
    body = vectors.read_answer("streams", name).body
    phases = find_phases(body)
    assert any(phase.outcome == OK for phase in phases) == (vectors.read_expected("streams")[name]["outcome"] == "OK")
    starts = {phase.start: phase for phase in phases}
    phase = phases[0]
    stream = ChatStream()
    chunks = 0
    for length in range(len(body) + 1):
        phase = starts.get(length, phase)
        try:  # one byte more, and then as if the body ended there
            chunks += len(list(stream.feed(body[length - 1 : length] if length else b"")))
            if stream.done:
                assert phase.outcome == OK
                break
            stream.close()
            outcome = OK
        except BridgeError as error:
            outcome = (error.code.name, error.reason_name)
        assert (chunks, outcome) == (phase.chunks, phase.outcome), length
        if outcome[1] not in {"", "INCOMPLETE_COMPLETION"}:
            break
    else:
        assert phases[-1].outcome != INVALID
    # The same with the bytes read at once, where something changes and a byte before and after.
    for found in phases:
        for length in {max(found.start - 1, 0), found.start, found.start + 1}:
            then = [each for each in phases if each.start <= length][-1]
            outcome = read_stream(body[:length])
            assert (len(outcome.chunks), (outcome.code, outcome.reason)) == (then.chunks, then.outcome), length


@pytest.mark.parametrize("name", STREAMS)
def test_stream_whose_connection_breaks_is_ok_only_if_it_is_whole(name):
    body = vectors.read_answer("streams", name).body
    for phase in find_phases(body):
        lost = BridgeError(Code.ABORTED, details_pb2.ERROR_REASON_UPSTREAM_DISCONNECTED, "lost")
        outcome = read_stream(body[: phase.start], failure=lost)
        expected = ("ABORTED", "UPSTREAM_DISCONNECTED") if phase.outcome == INCOMPLETE else phase.outcome
        assert (outcome.code, outcome.reason) == expected


@pytest.mark.parametrize("name", STREAMS)
@settings(max_examples=25)
@given(data=st.data())
def test_stream_cut_anew_at_random_gives_the_same_chunks(name, data):
    body = vectors.read_answer("streams", name).body
    offsets = data.draw(st.lists(st.integers(0, len(body)), max_size=30).map(sorted))
    pieces = [body[start:end] for start, end in pairwise([0, *offsets, len(body)])]
    whole, cut = read_stream(body), read_stream(*pieces)
    assert cut[:3] == whole[:3]


@pytest.mark.parametrize("name", STREAMS)
def test_stream_a_byte_at_a_time_gives_the_same_chunks(name):
    body = vectors.read_answer("streams", name).body
    assert read_stream(*(body[at : at + 1] for at in range(len(body))))[:3] == read_stream(body)[:3]


@pytest.mark.parametrize("name", STREAMS)
def test_every_key_of_a_recorded_chunk_reaches_the_caller(name):
    body = vectors.read_answer("streams", name).body
    values = [data for _, data in split_events(body) if data != b"[DONE]"]
    read = read_stream(body)
    for data, made in zip(values, read.chunks, strict=read.code == "OK"):  # up to the event that ends a broken one
        value = json.loads(data)
        kept = json_format.MessageToDict(made, preserving_proto_field_name=True)
        typed = {*kept} | {*made.extra_json}
        raw = {key for key in value if "raw_" in key}
        assert {key for key, item in value.items() if item not in (None, "", [])} - typed <= raw
        assert not raw or made.HasField("raw_chunk_json") or made.HasField("raw_usage_json")


def test_tool_calls_of_a_recorded_stream_pass_as_they_come():
    chunks = read_stream(vectors.read_answer("streams", "tensorzero-tools").body).chunks
    fragments = [call for each in chunks for choice in each.choices for call in choice.delta.tool_calls]
    assert [fragment.HasField("id") for fragment in fragments] == [True] + [False] * (len(fragments) - 1)
    assert [fragment.function.name for fragment in fragments] == ["get_weather"] + [""] * (len(fragments) - 1)
    assert all(fragment.function.HasField("name") for fragment in fragments)
    assert json.loads("".join(fragment.function.arguments for fragment in fragments))


def test_raw_data_of_recorded_streams_is_typed():
    raw = read_stream(vectors.read_answer("streams", "tensorzero-raw-chunk").body).chunks[0]
    assert json.loads(raw.raw_chunk_json)["object"] == "chat.completion.chunk"
    chunks = read_stream(vectors.read_answer("streams", "tensorzero-raw-usage").body).chunks
    (usage,) = [each.raw_usage_json for each in chunks if each.HasField("raw_usage_json")]
    assert json.loads(usage)[0]["data"]["total_tokens"] == 12


def test_reasoning_of_a_recorded_stream_is_in_extra_json():
    chunks = read_stream(vectors.read_answer("streams", "tensorzero-reasoning").body).chunks
    texts = [json.loads(each.choices[0].delta.extra_json.get("tensorzero_extra_content", "[]")) for each in chunks]
    assert "".join(thought["text"] for text in texts for thought in text) == "2+2=4 so answer 4."


# When a stream is whole


@pytest.mark.parametrize(
    ("pieces", "outcome"),
    [
        pytest.param([render_events(make_chunk("a"), make_chunk(None, "stop")), DONE], OK, id="finished and done"),
        pytest.param([render_events(make_chunk("a"), make_chunk(None, "stop"))], OK, id="finished without [DONE]"),
        pytest.param(
            [render_events(make_chunk("a", "stop", usage={"total_tokens": 1})), DONE],
            OK,
            id="usage on the finish chunk",
        ),
        pytest.param(
            [render_events(make_chunk("a", "stop"), {"choices": [], "usage": {}}), DONE], OK, id="usage on its own"
        ),
        pytest.param([render_events(make_chunk("a", "new_reason")), DONE], OK, id="a reason not known"),
        pytest.param(
            [render_events(make_chunk("a", finish_reason={"x": 1})), DONE], OK, id="a reason that is no string"
        ),
        pytest.param(
            [render_events(make_chunk("a", "stop"), make_chunk("b")), DONE], OK, id="a chunk after the finish"
        ),
        pytest.param([render_events(make_chunk("a", "stop")), b"data:  [DONE] \n\n"], OK, id="[DONE] with white space"),
        pytest.param([render_events(make_chunk("a", "stop")), b"data:[DONE]\r\r"], OK, id="[DONE] without a space"),
        pytest.param([render_events(make_chunk("a", "stop")), b": ping\n\n:\n\n", DONE], OK, id="comments"),
        pytest.param(
            [render_events(make_chunk("a", "stop")), DONE, render_events({"error": "late"})],
            OK,
            id="an error after [DONE]",
        ),
        pytest.param([render_events(make_chunk("a", "stop")), DONE, b"data: {\n\n"], OK, id="rubbish after [DONE]"),
        pytest.param([render_events(make_chunk("a", "stop")), b"data: {"], OK, id="an event cut after the finish"),
        pytest.param([], INCOMPLETE, id="nothing"),
        pytest.param([b": ping\n\n"], INCOMPLETE, id="a comment"),
        pytest.param([DONE], INCOMPLETE, id="[DONE] alone"),
        pytest.param([render_events({"choices": []}), DONE], INCOMPLETE, id="no choice"),
        pytest.param([render_events(make_chunk("a")), DONE], INCOMPLETE, id="[DONE] before the finish"),
        pytest.param([render_events(make_chunk("a"))], INCOMPLETE, id="the end before the finish"),
        pytest.param([render_events(make_chunk("a", "")), DONE], INCOMPLETE, id="an empty reason"),
        pytest.param([render_events(make_chunk("a", "stop"))[:-1]], INCOMPLETE, id="a finish without its blank line"),
        pytest.param(
            [render_events(make_chunk("a", "stop"), make_chunk("b", index=1)), DONE],
            INCOMPLETE,
            id="a second choice unfinished",
        ),
        pytest.param(
            [render_events(make_chunk("a", "stop", "0"), make_chunk("b", None, "1")), DONE],
            INCOMPLETE,
            id="indices as strings",
        ),
        pytest.param(
            [render_events(make_chunk("a", "stop"), {"choices": [{"index": 1, "delta": {}}, None]}), DONE],
            INVALID,
            id="choices that are no objects",
        ),
        pytest.param(
            [render_events(make_chunk("a", "stop", "0"), make_chunk("b", "stop", "1")), DONE],
            OK,
            id="finished, index a string",
        ),
        pytest.param(
            [render_events(make_chunk("a", "stop", 0), make_chunk("b", "stop", 1)), DONE], OK, id="two choices finished"
        ),
        pytest.param([b"data: {\n\n"], INVALID, id="no JSON"),
        pytest.param([b"data:\n\n", b"data: \t\n\n"], INCOMPLETE, id="no data"),
        pytest.param([b"data: [DONE\n\n"], INVALID, id="nearly [DONE]"),
        pytest.param([b"data: []\n\n"], INVALID, id="a list"),
        pytest.param([b"data: null\n\n"], INVALID, id="null"),
        pytest.param([b'data: "[DONE]"\n\n'], INVALID, id="[DONE] in quotes"),
        pytest.param([render_events(make_chunk("a", "stop")), b"data: {\n\n"], OK, id="no JSON after the finish"),
        pytest.param([b'data: {"x": "\xff"}\n\n'], INVALID, id="no UTF-8"),
        pytest.param([b"data: " + b"[" * 1100 + b"\n\n"], INVALID, id="too deep"),
        pytest.param([b'data: {"x": ' + b"[" * 1010 + b"]" * 1010 + b"}\n\n"], INVALID, id="too deep to be sliced"),
    ],
)
def test_stream_is_ok_only_if_every_choice_has_finished(pieces, outcome):
    assert read_stream(*pieces)[1:3] == outcome


def test_done_ends_the_stream():
    stream = ChatStream()
    assert len(list(stream.feed(render_events(make_chunk("a", "stop")) + DONE + render_events(make_chunk("b"))))) == 1
    assert stream.done
    assert list(stream.feed(render_events(make_chunk("c")))) == []
    assert list(stream.feed(b"data: " + b"x" * 20 * 1024 * 1024)) == []  # too large, which nobody reads
    assert (stream.chunks, stream.is_whole) == (1, True)


@pytest.mark.parametrize(
    ("pieces", "outcome"),
    [
        ([render_events(make_chunk("a")), DONE], OK),
        ([DONE], OK),
        ([render_events(make_chunk("a"))], INCOMPLETE),
        ([render_events(make_chunk("a", "stop"))], OK),
        ([render_events(make_chunk("a")), render_events({"error": "x"}), DONE], ("INTERNAL", "UPSTREAM_STREAM_ERROR")),
    ],
)
def test_done_alone_counts_if_no_finish_reason_is_required(pieces, outcome):
    assert read_stream(*pieces, require_finish_reason=False)[1:3] == outcome


@pytest.mark.parametrize("body", [b'{"choices": []}', b'{"choices": [{"message": {"content": "a"}}]}'])
def test_unary_answer_needs_no_finish_reason_if_none_is_required(body):
    assert len(decode_reply(body, require_finish_reason=False).choices) == body.count(b"message")
    with pytest.raises(BridgeError):
        decode_reply(body)
    with pytest.raises(BridgeError):
        decode_reply(b'{"choices": [null]}', require_finish_reason=False)


def test_unary_answer_that_is_not_whole_says_what_came():
    body = b'{"choices": [{"message": {"content": "Hel"}}], "usage": {"prompt_tokens": 7}}'
    with pytest.raises(BridgeError) as caught:
        decode_reply(body)
    upstream = caught.value.upstream
    assert (upstream.http_status, upstream.body_excerpt) == (200, body.decode())
    assert upstream.partial_usage.prompt_tokens == 7


def test_incomplete_completion_says_what_was_missing():
    assert (
        "[DONE] came before choice 1 had a finish_reason"
        in read_stream(render_events(make_chunk("a", "stop"), make_chunk("b", index=1)), DONE).error.message
    )
    assert "[DONE] came" in read_stream(render_events(make_chunk("a")), DONE).error.message
    assert "the body ended before any choice came" in read_stream().error.message


def test_choices_of_a_stream_are_bounded():
    outcome = read_stream(*(render_events(make_chunk("a", "stop", index)) for index in range(1025)))
    assert outcome[1:3] == INVALID
    assert len(outcome.chunks) == 1024


def test_event_larger_than_the_limit_ends_the_call_after_the_chunks_before_it():
    outcome = read_stream(render_events(make_chunk("a")), b"data: " + b"x" * 1000, event_bytes_max=500)
    assert outcome[1:3] == ("INTERNAL", "UPSTREAM_RESPONSE_TOO_LARGE")
    assert len(outcome.chunks) == 1
    assert outcome.error.message == "an event of the stream is larger than 500 bytes (upstream.event_bytes_max)"


# Errors in a stream


@pytest.mark.parametrize(
    ("event", "code", "message"),
    [
        (render_events({"error": {"message": "m"}}), "INTERNAL", "m"),
        (render_events({"error": "m"}), "INTERNAL", "m"),
        (render_events({"error": {"message": "m", "code": 429}}), "RESOURCE_EXHAUSTED", "m"),
        (render_events({"error": {"message": "m", "type": "timeout"}}), "DEADLINE_EXCEEDED", "m"),
        (render_events({"error": {"message": "m"}, "code": "model_not_found", "choices": []}), "NOT_FOUND", "m"),
        (render_events({**make_chunk("a", "stop"), "error": {"message": "m"}}), "INTERNAL", "m"),
        (render_events({"error": {"code": 400}}), "INVALID_ARGUMENT", "the upstream sent an error without a message"),
        (b'event: error\ndata: {"message": "m", "type": "overloaded_error"}\n\n', "UNAVAILABLE", "m"),
        (b'event: error\ndata: {"error": {"message": "m", "code": 401}}\n\n', "UNAUTHENTICATED", "m"),
        (b'event: error\ndata: {"error": {}}\n\n', "INTERNAL", "the upstream sent an error without a message"),
        (b"event: error\ndata: {}\n\n", "INTERNAL", "the upstream sent an error without a message"),
        (b"event: error\ndata: the words\n\n", "INTERNAL", "the words"),
        (b"event: Error\ndata: the words\n\n", "INTERNAL", "the words"),
        (b'event: error\ndata: "the words"\n\n', "INTERNAL", "the words"),
        (b"event: error\ndata: \n\n", "INTERNAL", "the upstream sent an error without a message"),
        (b"event: error\ndata: [1]\n\n", "INTERNAL", "[1]"),
        (b"event: error\ndata: null\n\n", "INTERNAL", "null"),
        (b"event: error\ndata: \xff\n\n", "INTERNAL", "\ufffd"),
        (b"event: error\ndata: [DONE]\n\n", "INTERNAL", "[DONE]"),
        (b'event: error\ndata: {"choices": [{"finish_reason": "stop"}]}\n\n', "INTERNAL", None),
        (b'data: {"error": {"message": "m", "x": ' + b"[" * 1010 + b"]" * 1010 + b"}}\n\n", "INTERNAL", "m"),
    ],
)
def test_error_event_ends_the_call_with_its_status(event, code, message):
    outcome = read_stream(event, render_events(make_chunk("a", "stop")), DONE)
    assert (outcome.chunks, *outcome[1:3]) == ([], code, "UPSTREAM_STREAM_ERROR")
    assert message is None or outcome.error.message == message
    assert outcome.error.upstream.http_status == 200


@pytest.mark.parametrize("error", [None, False, 0, "", {}, []], ids=repr)
def test_error_that_is_nothing_is_a_chunk(error):
    assert read_stream(render_events(make_chunk("a", "stop", error=error)), DONE).code == "OK"


@pytest.mark.parametrize("before", [0, 1, 3])
def test_error_event_comes_after_what_was_delivered(before):
    usage = {"usage": {"prompt_tokens": 7}}
    outcome = read_stream(
        render_events(*[make_chunk("a", **usage)] * before, {"error": {"message": "m"}}, make_chunk("b", "stop")) + DONE
    )
    assert (len(outcome.chunks), outcome.code, outcome.reason) == (before, "INTERNAL", "UPSTREAM_STREAM_ERROR")
    upstream = outcome.error.upstream
    assert (upstream.chunks_delivered, upstream.partial_usage.prompt_tokens) == (before, 7 if before else 0)
    assert upstream.HasField("partial_usage") == bool(before)


def test_error_event_after_the_finish_is_an_error():
    assert read_stream(render_events(make_chunk("a", "stop"), {"error": "m"}), DONE)[1:3] == (
        "INTERNAL",
        "UPSTREAM_STREAM_ERROR",
    )


def test_stream_that_failed_is_never_whole():
    stream = ChatStream()
    with pytest.raises(BridgeError):
        list(stream.feed(render_events(make_chunk("a", "stop"), {"error": "m"})))
    with pytest.raises(BridgeError):
        stream.close()


@pytest.mark.parametrize(("chunks", "code"), [(0, "UNAVAILABLE"), (1, "ABORTED")])
def test_unavailable_becomes_aborted_once_a_chunk_was_delivered(chunks, code):
    for error in ({"code": 503}, {"code": 502}, {"type": "overloaded_error"}):
        assert read_stream(render_events(*[make_chunk("a")] * chunks, {"error": error})).code == code
    lost = BridgeError(Code.UNAVAILABLE, details_pb2.ERROR_REASON_DRAINING, "draining")
    assert read_stream(render_events(*[make_chunk("a")] * chunks), failure=lost).code == code


def test_broken_connection_says_how_far_the_stream_came():
    lost = BridgeError(Code.DEADLINE_EXCEEDED, details_pb2.ERROR_REASON_UPSTREAM_TIMEOUT, "silent")
    outcome = read_stream(render_events(make_chunk("a"), make_chunk("b", usage={"total_tokens": 3})), failure=lost)
    assert outcome[1:3] == ("DEADLINE_EXCEEDED", "UPSTREAM_TIMEOUT")
    upstream = outcome.error.upstream
    assert (upstream.chunks_delivered, upstream.partial_usage.total_tokens) == (2, 3)
    assert lost.upstream is None


def test_resource_is_named_if_the_stream_says_not_found():
    outcome = read_stream(render_events({"error": {"code": "model_not_found"}}), asked=Asked(Resource("model", "near")))
    assert outcome.error.resource == Resource("model", "near")


@pytest.mark.parametrize("code", [401, "invalid_api_key", 403])
def test_refusal_of_the_own_key_in_a_stream_does_not_blame_the_caller(code):
    event = render_events({"error": {"message": "m", "code": code}})
    assert read_stream(event, asked=Asked(own_key=True))[1:3] == ("INTERNAL", "CREDENTIALS_REJECTED")


def test_key_in_an_event_that_is_no_json_is_redacted():
    secret = "s3cr3t" * 20
    for data in (f"sk-{secret}", f"https://user:{secret}@host", f"Bearer {secret}"):
        outcome = read_stream(f"data: {data}\n\n".encode())
        assert outcome[1:3] == INVALID
        assert "s3cr" not in to_grpc_status(outcome.error).message


# Keys of a chunk


def test_lone_surrogate_in_a_delta_becomes_a_replacement_character():
    data = rb'{"choices": [{"delta": {"content": "a\ud83d", "x": "\ude00"}, "finish_reason": "stop"}]}'
    ((made,), code, *_) = read_stream(b"data: " + data + b"\n\n", DONE)
    assert code == "OK"
    assert made.choices[0].delta.content == "a\ufffd"
    assert json.loads(made.choices[0].delta.extra_json["x"]) == "\ufffd"


def test_one_data_event_is_one_message():
    data = b': a\n\ndata: {"id": "1",\ndata: "choices": []}\n\nevent: other\ndata: {}\nid: 3\n\ndata: {}\n\n'
    assert [made.id for made in read_stream(data).chunks] == ["1", "", ""]


def test_usage_is_the_last_seen():
    stream = ChatStream()
    list(
        stream.feed(
            render_events(make_chunk("a", usage={"total_tokens": 1}), make_chunk("b", usage=None), make_chunk("c"))
        )
    )
    assert stream.usage.total_tokens == 1
    list(stream.feed(render_events(make_chunk("a", usage={"total_tokens": 2}))))
    assert stream.usage.total_tokens == 2


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["stop", "", "a", 1e300, 2**70]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["choices", "index", "delta", "finish_reason", "content", "error", "usage", "code", "x"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@given(
    st.lists(
        VALUES.map(render_events)
        | st.builds(make_chunk, st.just("a"), st.sampled_from([None, "", "stop"]), VALUES).map(render_events),
        max_size=4,
    ),
    st.booleans(),
)
def test_any_events_end_in_ok_or_a_status(events, done):
    outcome = read_stream(*events, *[DONE] * done)
    if outcome.code == "OK":
        assert any(choice.finish_reason or choice.extra_json for each in outcome.chunks for choice in each.choices)


@given(st.binary(max_size=80))
def test_any_bytes_end_in_a_status(data):
    assert read_stream(data).code != "OK"


# Requests


def test_stream_is_sent_as_true_or_not_at_all():
    request = CreateChatCompletionRequest(**HELLO)
    assert encode_request(request, stream=False) == b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
    assert (
        encode_request(request, stream=True)
        == b'{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true}'
    )


def test_stream_options_go_with_a_stream_only():
    request = CreateChatCompletionRequest(**HELLO, stream_options={"include_usage": False, "extra_json": {"x": "1.0"}})
    assert b"stream_options" not in encode_request(request, stream=False)
    assert b'"stream_options":{"include_usage":false,"x":1.0}' in encode_request(request, stream=True)


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        (None, {"include_usage": True}),
        ({}, {"include_usage": True}),
        ({"include_usage": True}, {"include_usage": True}),
        ({"extra_json": {"x": "1"}}, {"x": 1, "include_usage": True}),
    ],
)
def test_raw_usage_of_a_stream_switches_usage_on(options, sent):
    request = CreateChatCompletionRequest(**HELLO, ollm={"include_raw_usage": True}, stream_options=options)
    assert json.loads(encode_request(request, stream=True))["stream_options"] == sent
    assert b"stream_options" not in encode_request(request, stream=False)


def test_stream_options_in_extra_json_are_not_changed():
    request = CreateChatCompletionRequest(
        **HELLO, ollm={"include_raw_usage": True}, extra_json={"stream_options": '{"include_usage":true,"x":1.0}'}
    )
    assert b'"stream_options":{"include_usage":true,"x":1.0}' in encode_request(request, stream=True)


def test_raw_usage_switched_off_changes_nothing():
    request = CreateChatCompletionRequest(**HELLO, ollm={"include_raw_usage": False})
    assert b"stream_options" not in encode_request(request, stream=True)


def test_set_fields_are_sent_and_unset_ones_are_not():
    zeros = {"temperature": 0.0, "max_tokens": 0, "seed": 0, "parallel_tool_calls": False, "verbosity": ""}
    request = CreateChatCompletionRequest(**HELLO, **zeros, ollm={"dryrun": False, "tags": {}})
    body = encode_request(request, stream=False)
    assert json.loads(body).keys() == {"model", "messages", *zeros, "ollm::dryrun"}
    assert b"null" not in body


def test_numbers_are_sent_in_their_own_form():
    request = CreateChatCompletionRequest(
        **HELLO, temperature=0.7, top_p=1, max_tokens=40, seed=2**53 + 1, presence_penalty=1e-9
    )
    body = encode_request(request, stream=False)
    for text in (
        *(b'"temperature":0.7,', b'"max_tokens":40,', b'"seed":9007199254740993'),
        *(b'"top_p":1.0,', b'"presence_penalty":1e-9'),
    ):
        assert text in body


@pytest.mark.parametrize(
    ("model", "variant", "resource"),
    [
        ("near", "", ("model", "near")),
        ("ollm::model_name::near", "", ("model", "near")),
        ("ollm::model_name::openai::gpt", "v", ("model", "openai::gpt")),
        ("near", "v", ("model", "near")),
        ("ollm::function_name::f", "", ("function", "f")),
        ("ollm::function_name::f", "v", ("variant", "v")),
        ("tensorzero::function_name::f", "", ("model", "tensorzero::function_name::f")),
    ],
)
def test_selector_names_the_resource_of_a_request(model, variant, resource):
    options = {"ollm": {"variant_name": variant}} if variant else {}
    assert requested_resource(CreateChatCompletionRequest(model=model, **options)) == Resource(*resource)


RECORDED_REQUESTS = vectors.read_requests()


def drop_nulls(value: dict[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if item is not None}


@pytest.mark.parametrize("name", RECORDED_REQUESTS)
def test_recorded_request_is_read_and_sent_as_an_equal_document(name):
    document = json.loads(RECORDED_REQUESTS[name], object_hook=drop_nulls)
    stream = document.pop("stream", False)
    request = decode_request_json(json.dumps(document))
    assert request == decode_request_json(json.dumps(document).encode())
    sent = json.loads(encode_request(request, stream=bool(stream)))
    assert sent.pop("stream", False) == bool(stream)
    if not stream:
        document.pop("stream_options", None)
    assert sent == document


@pytest.mark.parametrize("text", ["", "{", "nul", "[" * 2000], ids=repr)
def test_text_that_is_no_json_is_no_request(text):
    with pytest.raises(ValueError, match=r"unexpected|nests|Expecting|line 1"):
        decode_request_json(text)


@pytest.mark.parametrize("text", ["[]", "1", "null", '"text"'])
def test_json_that_is_no_object_is_no_request(text):
    with pytest.raises(ValueError, match="expected a JSON object, found a value of type "):
        decode_request_json(text)


# Replies


@pytest.mark.parametrize("name", REPLIES)
def test_recorded_reply_is_typed(name):
    answer, expected = vectors.read_answer("replies", name), vectors.read_expected("replies")[name]
    reply = decode_reply(answer.body)
    message = reply.choices[0].message
    assert len(reply.choices) == expected["choices"]
    assert (message.text if message.HasField("text") else None) == expected["text"]
    assert reply.choices[0].finish_reason == expected["finish_reason"]
    assert [call.function.name for call in message.tool_calls] == expected["tool_calls"]
    assert reply.usage.total_tokens == expected["total_tokens"]
    value = json.loads(answer.body)
    assert {"id", "object", "created", "model"} <= value.keys()
    assert (reply.id, reply.object, reply.created, reply.model) == tuple(
        value[key] for key in ("id", "object", "created", "model")
    )
    for key, text in reply.extra_json.items():
        assert json.loads(text) == value[key]


@pytest.mark.parametrize("name", REPLIES)
def test_message_of_a_recorded_reply_can_go_back_as_it_is(name):
    reply = decode_reply(vectors.read_answer("replies", name).body)
    request = CreateChatCompletionRequest(model="m", messages=[choice.message for choice in reply.choices])
    sent = json.loads(encode_request(request, stream=False))["messages"]
    received = [each["message"] for each in json.loads(vectors.read_answer("replies", name).body)["choices"]]
    assert sent == [drop_nulls(each) for each in received]


@pytest.mark.parametrize("body", ["reply", "bom"])
def test_reply_may_begin_with_a_byte_order_mark(body):
    mark = b"\xef\xbb\xbf" if body == "bom" else b""
    assert decode_reply(mark + b'{"choices": [{"finish_reason": "stop"}], "id": "i"}').id == "i"
    with pytest.raises(BridgeError) as caught:
        decode_reply(mark + b'{"error": {"message": "m", "code": 429}}')
    assert (caught.value.code, caught.value.message) == (Code.RESOURCE_EXHAUSTED, "m")


@pytest.mark.parametrize(
    ("body", "code", "reason"),
    [
        (b"", *INVALID),
        (b"<html>", *INVALID),
        (b"[]", *INVALID),
        (b"{}", *INVALID),
        (b'{"id": "i"}', *INVALID),
        (b'{"choices": null}', *INVALID),
        (b'{"message": "m"}', *INVALID),
        (b'{"error": {}}', *INVALID),
        (b'{"choices": "none"}', *INVALID),
        (b'{"choices": {}}', *INVALID),
        (b'{"choices": [null]}', *INVALID),
        (b'{"choices": [{"finish_reason": "stop"}, 1]}', *INVALID),
        (b'{"choices": []}', *INCOMPLETE),
        (b'{"choices": [{"message": {"content": "a"}}]}', *INCOMPLETE),
        (b'{"choices": [{"finish_reason": ""}]}', *INCOMPLETE),
        (b'{"choices": [{"finish_reason": "None"}]}', *INCOMPLETE),
        (b'{"choices": [{"finish_reason": "stop"}, {"index": 1}]}', *INCOMPLETE),
        (b'{"choices": [{"finish_reason": "abort"}]}', "ABORTED", "UPSTREAM_STREAM_ERROR"),
        (b'{"choices": [{"finish_reason": "stop", "error": {"code": 502}}]}', "UNAVAILABLE", "UPSTREAM_STREAM_ERROR"),
        (
            b'{"choices": [{"message": {"content": "Hel"}, "error": {"code": 502}}]}',
            *("ABORTED", "UPSTREAM_STREAM_ERROR"),
        ),
        (b'{"choices": [{"message": {"error": "m"}, "finish_reason": "stop"}]}', "INTERNAL", "UPSTREAM_STREAM_ERROR"),
        (b'{"choices": [], "x": ' + b"[" * 1010 + b"]" * 1010 + b"}", *INVALID),
        (b'{"choices": [], "x": ' + b"[" * 100_000, *INVALID),
        (b'{"error": {"message": "m"}}', "INTERNAL", "UPSTREAM_STREAM_ERROR"),
        (b'{"error": "m", "choices": []}', "INTERNAL", "UPSTREAM_STREAM_ERROR"),
        (b'{"error": {"code": "insufficient_quota"}}', "RESOURCE_EXHAUSTED", "UPSTREAM_STREAM_ERROR"),
        (b'{"error": {"code": 503}}', "UNAVAILABLE", "UPSTREAM_STREAM_ERROR"),
    ],
)
def test_200_that_is_no_completion_is_a_status(body, code, reason):
    with pytest.raises(BridgeError) as caught:
        decode_reply(body, asked=Asked(Resource("model", "near")))
    assert (caught.value.code.name, caught.value.reason_name) == (code, reason)


@pytest.mark.parametrize("error", [b"null", b"{}", b'""', b"0", b"false", b"[]"])
def test_reply_with_an_error_that_is_nothing_is_a_completion(error):
    reply = decode_reply(b'{"choices": [{"finish_reason": "stop"}], "error": ' + error + b"}")
    assert dict(reply.extra_json) == ({} if error == b"null" else {"error": error.decode()})


def test_refusal_of_the_own_key_inside_a_200_does_not_blame_the_caller():
    with pytest.raises(BridgeError) as caught:
        decode_reply(b'{"error": {"message": "m", "code": 401}}', asked=Asked(own_key=True))
    assert caught.value.reason_name == "CREDENTIALS_REJECTED"


def test_chunk_counts_as_soon_as_it_is_yielded():
    stream = ChatStream()
    chunks = stream.feed(render_events(make_chunk("a"), make_chunk("b")))
    for count in (1, 2):
        next(chunks)
        assert stream.chunks == count


# What an answer may cost. Each of these has a few MiB at most; unbounded they take seconds and hundreds of MiB.

COSTLY = {
    "choices": (b'{"choices":[' + b'{"x":1},' * 1024 + b'{"x":1}]}', "more than 1024 choices"),
    "values": (b'{"choices":[],"a":[' + b"1," * 600_000 + b"1]}", "more than 600000 values"),
    "keys": (b'{"choices":[],' + b",".join(b'"k%d":1' % n for n in range(2049)) + b"}", "more than 2048 members"),
    "keys of choices": (
        b'{"choices":[' + b",".join(b'{"index":%d,"a":1,"b":1,"c":1}' % n for n in range(1000)) + b"]}",
        "more than 2048 members",
    ),
}


@pytest.mark.parametrize(("body", "words"), COSTLY.values(), ids=COSTLY)
def test_answer_of_too_many_values_is_too_large(body, words):
    with pytest.raises(BridgeError, match=words) as unary:
        decode_reply(body)
    with pytest.raises(BridgeError, match=words) as streamed:
        list(ChatStream().feed(b"data: " + body + b"\n\n"))
    for caught in (unary, streamed):
        assert (caught.value.code.name, caught.value.reason_name) == ("INTERNAL", "UPSTREAM_RESPONSE_TOO_LARGE")
        assert caught.value.upstream.http_status == 200


def test_array_of_too_many_objects_is_kept_as_text():
    calls = "[" + ",".join(['{"index":0}'] * 20_000) + "]"
    body = b'{"choices":[{"index":0,"message":{"role":"a","tool_calls":%b},"finish_reason":"stop"}]}' % calls.encode()
    message = decode_reply(body).choices[0].message
    assert not message.tool_calls
    assert message.extra_json["tool_calls"] == calls


def make_logprobs(tokens: int, top: int, **others: Any) -> list[dict[str, Any]]:
    """Return what a server tells of its tokens; `others` are keys of its own."""
    likely = [{"token": f"t{n}", "logprob": -0.25 * n, "bytes": [116, 48 + n % 10], **others} for n in range(top)]
    return [{"token": "t0", "logprob": 0.0, "bytes": [116, 48], **others, "top_logprobs": likely}] * tokens


def make_reply(logprobs: list[dict[str, Any]]) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
    return json.dumps({"choices": [{**choice, "logprobs": {"content": logprobs}}]}).encode()


@pytest.mark.parametrize(
    ("tokens", "top", "others"),
    [(3000, 20, {}), (150, 20, {"id": 7})],  # llama.cpp tells the id of each token
    ids=["OpenAI's most", "a key of the server's own"],
)
def test_log_probabilities_of_a_long_answer_are_read_into_fields(tokens, top, others):
    expected = make_logprobs(tokens, top, **others)
    found = decode_reply(make_reply(expected)).choices[0].logprobs.content
    assert len(found) == tokens
    assert len(found[-1].top_logprobs) == top
    assert all(len(each.extra_json) == len(others) for token in found for each in (token, *token.top_logprobs))


def test_log_probabilities_that_have_too_much_are_text_as_a_whole():
    expected = make_logprobs(2000, 20, id=7)
    choice = decode_reply(make_reply(expected)).choices[0]
    assert not choice.logprobs.content
    assert json.loads(choice.logprobs.extra_json["content"]) == expected
    assert choice.message.text == "x"


def test_what_is_kept_of_a_choice_index_is_bounded():
    stream = ChatStream()
    for n in range(20):
        event = render_events({"choices": [{"index": "x" * 1_000_000 + str(n), "delta": {}, "finish_reason": None}]})
        assert len(list(stream.feed(event))) == 1
    with pytest.raises(BridgeError) as caught:
        stream.close()
    assert len(caught.value.message) < 300


def test_pending_bytes_are_those_of_the_event_that_is_not_whole():
    stream = ChatStream()
    list(stream.feed(b"data: {}\n\ndata: 123"))
    assert stream.pending_bytes == 9
    list(stream.feed(b"\ndata: 45"))
    assert stream.pending_bytes == 11
