"""Tests of bridge/server/h2/frames.py: frames cut anywhere come out whole, and bad ones are faults."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.server.h2 import frames
from bridge.server.h2.frames import (
    FRAME_BYTES_MAX,
    PREFACE,
    ErrorCode,
    FrameCutter,
    Http2Error,
    StreamError,
)
from tests.kit.http2 import Frame, encode_frame, split_frames

FRAMES = st.lists(
    st.tuples(st.integers(0, 255), st.integers(0, 255), st.integers(0, 2**31 - 1), st.binary(max_size=40)), max_size=10
)


@given(FRAMES, st.lists(st.integers(0, 1000), max_size=30))
def test_frames_cut_anywhere_are_cut_out_whole(expected, places):
    stream = PREFACE + b"".join(itertools.starmap(encode_frame, expected))
    edges = sorted({0, len(stream), *(place % (len(stream) + 1) for place in places)})
    cutter = FrameCutter()
    found = [frame for start, stop in itertools.pairwise(edges) for frame in cutter.cut(stream[start:stop])]
    assert found == expected
    assert cutter.held == 0


def test_reserved_bit_of_a_stream_id_is_ignored():
    frame = b"\0\0\0\6\0" + (0x80000003).to_bytes(4)
    assert list(FrameCutter().cut(PREFACE + frame)) == [(6, 0, 3, b"")]


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\n", b"\x16\x03\x01", PREFACE[:-1] + b"x", b"X"])
def test_other_protocol_is_a_fault_at_its_first_bytes(start):
    with pytest.raises(Http2Error, match="preface") as caught:
        list(FrameCutter().cut(start))
    assert caught.value.code == ErrorCode.PROTOCOL_ERROR


def test_frame_that_is_too_large_is_a_fault_before_its_payload_comes():
    cutter = FrameCutter()
    head = (FRAME_BYTES_MAX + 1).to_bytes(3) + b"\0\0\0\0\0\1"
    with pytest.raises(Http2Error) as caught:
        list(cutter.cut(PREFACE + head))
    assert caught.value.code == ErrorCode.FRAME_SIZE_ERROR
    assert list(FrameCutter().cut(PREFACE + FRAME_BYTES_MAX.to_bytes(3) + b"\0\0\0\0\0\1")) == []


@given(st.binary(max_size=20), st.integers(0, 30))
def test_padding_is_stripped(content, count):
    payload = bytes((count,)) + content + bytes(count)
    assert frames.strip_padding(payload, frames.PADDED) == content
    assert frames.strip_padding(payload, 0) == payload


@pytest.mark.parametrize("payload", [b"", b"\x01", b"\x05abcd"])
def test_padding_longer_than_its_frame_is_a_fault(payload):
    with pytest.raises(Http2Error, match="padding"):
        frames.strip_padding(payload, frames.PADDED)


def test_priority_of_headers_is_stripped():
    assert frames.strip_priority(bytes(5) + b"block", frames.PRIORITIZED, 1) == b"block"
    assert frames.strip_priority(b"block", 0, 1) == b"block"


@pytest.mark.parametrize(("payload", "message"), [(bytes(4), "cut off"), ((1).to_bytes(4) + b"\0", "depends on")])
def test_bad_priority_of_headers_is_a_fault(payload, message):
    with pytest.raises(Http2Error, match=message):
        frames.strip_priority(payload, frames.PRIORITIZED, 1)


def test_priority_frame_is_checked():
    frames.check_priority(bytes(5), 1)
    with pytest.raises(Http2Error):
        frames.check_priority(bytes(5), 0)
    for payload in (bytes(4), bytes(6), (1).to_bytes(4) + b"\0"):
        with pytest.raises(StreamError):
            frames.check_priority(payload, 1)


def test_settings_are_read_in_their_order():
    pairs = [(4, 1), (4, 2), (9, 2**32 - 1)]
    payload = b"".join(number.to_bytes(2) + value.to_bytes(4) for number, value in pairs)
    assert list(frames.iterate_settings(payload)) == pairs
    with pytest.raises(Http2Error, match="SETTINGS cut off"):
        frames.iterate_settings(payload[:-1])


def read(data: bytes) -> list[Frame]:
    return list(split_frames(data))


def test_frames_are_written():
    assert read(frames.encode_data(3, b"x", is_end=True)) == [(0, 1, 3, b"x")]
    assert read(frames.encode_message(3, b"xy")) == [(0, 0, 3, b"\0\0\0\0\2xy")]
    assert read(frames.encode_settings({3: 100})) == [(4, 0, 0, b"\0\3\0\0\0\x64")]
    assert read(frames.encode_window_update(0, 7)) == [(8, 0, 0, b"\0\0\0\7")]
    assert read(frames.encode_reset(5, 8)) == [(3, 0, 5, b"\0\0\0\x08")]
    assert read(frames.encode_goaway(9, 11, "calm")) == [(7, 0, 0, b"\0\0\0\x09\0\0\0\x0bcalm")]
    assert read(frames.SETTINGS_ACK) == [(4, 1, 0, b"")]


@pytest.mark.parametrize("size", [0, FRAME_BYTES_MAX, FRAME_BYTES_MAX + 1, 3 * FRAME_BYTES_MAX])
@pytest.mark.parametrize("is_end", [True, False])
def test_header_block_of_any_size_is_written_whole(size, is_end):
    found = read(frames.encode_headers_frames(1, bytes(size), is_end=is_end))
    assert [kind for kind, *_ in found] == [frames.HEADERS] + [frames.CONTINUATION] * (len(found) - 1)
    assert found[0][1] & frames.END_STREAM == is_end
    assert [bool(flags & frames.END_HEADERS) for _, flags, _, _ in found] == [False] * (len(found) - 1) + [True]
    assert b"".join(payload for *_, payload in found) == bytes(size)
