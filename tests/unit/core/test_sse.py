from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bridge.core.sse import Event, EventTooLargeError, SseDecoder
from tests.kit import vectors
from tests.kit.oracle import is_within_event, split_events

MIB = 1024 * 1024
CASES = vectors.read_sse_cases()

# What a parser could trip over, often enough for its combinations to come up.
TOKENS = st.sampled_from(
    [
        *(
            b"data",
            b"data:",
            b"data: ",
            b"event:",
            b"event: error",
            b"event",
            b"id: 1",
            b"retry: 5",
            b": ping",
            b":",
            b" ",
        ),
        *(
            b"data: a\r\n",
            b"event: b\r\n",
            b"data\r",
            b"\n",
            b"\r",
            b"\r\n",
            b"\n\n",
            b"\r\r",
            b"\r\n\r\n",
            b"\xef\xbb\xbf",
            b"\xef\xbb",
            b"\xef",
            b"\xbf",
        ),
        *(
            b"\xe2\x80\xa8",
            b"\x0b",
            b"\x0c",
            b"\x1c",
            b"\x85",
            b"\x00",
            b"\xff",
            b"{}",
            b"[DONE]",
            b"x",
            b"\xe4\xbd\xa0",
        ),
    ]
)
STREAMS = st.lists(st.one_of(TOKENS, TOKENS, st.binary(max_size=3)), max_size=40).map(b"".join)
CUTS = st.lists(st.integers(min_value=0, max_value=200), max_size=12)


def cut(stream: bytes, offsets: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(offset, len(stream)) for offset in offsets), len(stream)]
    return [stream[start:end] for start, end in pairwise(edges)]


def decode(pieces: list[bytes], **limits: int) -> list[Event | str]:
    """Return the events of a stream that comes in pieces; a last "too large" stands for that error."""
    decoder = SseDecoder(**limits)
    found: list[Event | str] = []
    try:
        for piece in pieces:
            found.extend(decoder.feed(piece))
    except EventTooLargeError:
        found.append("too large")
    return found


def decode_by_the_standard(stream: bytes) -> list[Event]:
    return [Event(*each) for each in split_events(stream)]


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_case_yields_its_events_whole_and_byte_by_byte(case):
    stream = case["stream"].encode()
    events = [Event(name, data.encode()) for name, data in case["events"]]
    assert decode([stream]) == events
    assert decode([stream[at : at + 1] for at in range(len(stream))]) == events
    assert decode_by_the_standard(stream) == events


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_case_cut_in_two_anywhere_yields_its_events(case):
    stream = case["stream"].encode()
    events = [Event(name, data.encode()) for name, data in case["events"]]
    for at in range(len(stream) + 1):
        assert decode([stream[:at], stream[at:]]) == events, at


@given(STREAMS)
def test_any_bytes_yield_the_events_of_the_standard(stream):
    assert decode([stream]) == decode_by_the_standard(stream)


@given(STREAMS)
@example(b"event: x\n\nevent: y\nevent:\n")
@example(b"error: {\n")
@example(b"data:\r\r")
def test_any_bytes_end_within_an_event_only_if_those_of_the_standard_do(stream):
    decoder = SseDecoder()
    list(decoder.feed(stream))
    assert decoder.is_within_event == is_within_event(stream)


@given(STREAMS, CUTS)
@example(b"data: a\r\n\r\ndata: b\r\n\r\n", [8, 10])
@example(b"\xef\xbb\xbfdata: a\n\n", [1, 2])
def test_any_split_of_any_stream_yields_the_same_events(stream, offsets):
    assert decode(cut(stream, offsets)) == decode([stream])


@given(STREAMS, CUTS, st.integers(min_value=0, max_value=30))
@example(b"data: 12345678\n\n", [14], 10)
def test_any_split_meets_a_limit_at_the_same_event(stream, offsets, limit):
    pieces = cut(stream, offsets)
    assert decode(pieces, event_bytes_max=limit) == decode([stream], event_bytes_max=limit)


@given(st.binary(max_size=200), CUTS)
def test_any_prefix_yields_the_first_of_the_events(stream, offsets):
    whole = decode([stream])
    for at in offsets:
        part = decode([stream[:at]])
        assert part == whole[: len(part)]


def test_event_split_inside_crlf_is_one_event():
    decoder = SseDecoder()
    assert list(decoder.feed(b"data: a\r")) == []
    assert list(decoder.feed(b"\n")) == []
    assert list(decoder.feed(b"data: b\r")) == []
    assert list(decoder.feed(b"\n\r")) == [Event("", b"a\nb")]
    assert list(decoder.feed(b"\ndata: c\r\n\r\n")) == [Event("", b"c")]


def test_event_comes_with_its_blank_line_and_not_a_byte_before():
    decoder = SseDecoder()
    assert list(decoder.feed(b"data: a\n")) == []
    assert list(decoder.feed(b"\n")) == [Event("", b"a")]


def test_data_that_is_no_utf8_passes_as_it_is():
    assert decode([b"data: \xff\xed\xa0\x80\n\n"]) == [Event("", b"\xff\xed\xa0\x80")]


def test_bytes_of_a_character_split_between_reads_are_joined():
    assert decode([b"data: \xe4\xbd", b"\xa0\n\n"]) == [Event("", "你".encode())]


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(b"data: " + b"x" * 200, id="a line without an end"),
        pytest.param(b"data: " + b"x" * 200 + b"\n\n", id="an event"),
        pytest.param(b"data: 12345678\n" * 30, id="many lines of one event"),
        pytest.param(b"event: " + b"x" * 200 + b"\n", id="a name"),
        pytest.param(b": " + b"x" * 200, id="a comment without an end"),
        pytest.param(b"\n" * 300 + b"y" * 200, id="a field of no known name"),
    ],
)
@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_line_or_event_larger_than_the_limit_is_an_error(stream, step):
    pieces = [stream[at : at + step] for at in range(0, len(stream), step)]
    assert decode(pieces, event_bytes_max=100) == ["too large"]


def test_events_before_one_too_large_come_out_first():
    stream = b"data: a\n\ndata: b\n\ndata: " + b"x" * 200 + b"\n\n"
    assert decode([stream], event_bytes_max=100) == [Event("", b"a"), Event("", b"b"), "too large"]


def test_small_events_without_end_never_meet_the_limit():
    assert len(decode([b"data: 12345678\n\n: ping\n\n" * 1000], event_bytes_max=100)) == 1000


def test_limit_is_named_in_the_error():
    with pytest.raises(EventTooLargeError, match="larger than 100 bytes"):
        list(SseDecoder(event_bytes_max=100).feed(b"x" * 101))


@pytest.mark.parametrize("line", [b"x" * 16, b"data: 123456789\n"], ids=["one line", "many lines"])
def test_event_of_8_mib_in_drips_takes_linear_time(line):
    # Looking at what is pending for each drip would read 2 TB, and meet the time that a test may take.
    count = 8 * MIB // 16
    decoder = SseDecoder()
    events = list(decoder.feed(b"" if line.endswith(b"\n") else b"data: "))
    for _ in range(count):
        events += decoder.feed(line)
    events += decoder.feed(b"\n\n")
    assert [len(event.data) for event in events] == [count * 10 - 1 if line.endswith(b"\n") else count * 16]
