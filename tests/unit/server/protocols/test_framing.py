"""Tests of bridge/server/protocols/framing.py: frames cut anywhere come out whole, and none beyond the limit."""

import gzip
import itertools
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.errors import Code
from bridge.server.protocols.framing import (
    COMPRESSED,
    FrameReader,
    MessageError,
    MessageReader,
    encode_frame,
    inflate,
)

FRAMES = st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=50)), max_size=8)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:stop] for start, stop in itertools.pairwise(edges)]


@given(FRAMES, st.lists(st.integers(0, 1000), max_size=20))
def test_frames_cut_anywhere_are_read_whole(frames, places):
    reader = FrameReader(50)
    found = []
    for part in cut(b"".join(encode_frame(data, flags) for flags, data in frames), places):
        reader.feed(part)
        while (frame := reader.read()) is not None:
            found.append(frame)
    assert found == frames
    assert (reader.held, reader.missing) == (0, 5)


@given(st.binary(max_size=50), st.integers(0, 60))
def test_reader_says_how_many_bytes_are_missing(data, place):
    frame = encode_frame(data)
    reader = FrameReader(50)
    reader.feed(frame[:place])
    fed = len(frame[:place])
    assert reader.missing == (5 if fed < 5 else len(frame)) - fed
    assert reader.held == fed


@pytest.mark.parametrize("length", [11, 1 << 31, (1 << 32) - 1])
def test_length_above_the_limit_is_refused_before_its_bytes_come(length):
    reader = MessageReader(10)
    reader.feed(b"\0" + length.to_bytes(4))
    with pytest.raises(MessageError, match=f"larger than request_bytes_max \\({length} vs. 10\\)") as caught:
        reader.read_message()
    assert caught.value.code == Code.RESOURCE_EXHAUSTED


def test_message_as_long_as_the_limit_is_read():
    reader = MessageReader(10)
    reader.feed(encode_frame(bytes(10)))
    assert reader.read_message() == bytes(10)
    assert reader.read_message() is None


COMPRESS = {"gzip": gzip.compress, "deflate": zlib.compress}


@given(st.sampled_from(["gzip", "deflate"]), st.binary(max_size=1000))
def test_compressed_message_is_inflated(encoding, data):
    reader = MessageReader(1000, encoding)
    for message, flags in ((COMPRESS[encoding](data), COMPRESSED), (data, 0)):
        reader.feed(encode_frame(message[:1000], flags))
        assert reader.read_message() == data


def test_encodings_are_those_of_others():
    assert inflate(gzip.compress(b"text"), "gzip", 10) == b"text"
    assert inflate(zlib.compress(b"text"), "deflate", 10) == b"text"


@given(st.lists(st.binary(max_size=100), min_size=1, max_size=16))
def test_members_of_gzip_are_one_message(parts):
    whole = b"".join(parts)
    members = b"".join(map(gzip.compress, parts))
    assert inflate(members, "gzip", len(whole)) == whole
    if len(whole) > 0:
        with pytest.raises(MessageError, match=rf"more when decompressed vs\. {len(whole) - 1}\)"):
            inflate(members, "gzip", len(whole) - 1)


def test_message_that_inflates_beyond_the_limit_is_refused():
    bomb = gzip.compress(bytes(100_000_000))
    with pytest.raises(MessageError, match=r"more when decompressed vs. 1000000") as caught:
        inflate(bomb, "gzip", 1_000_000)
    assert caught.value.code == Code.RESOURCE_EXHAUSTED
    assert len(inflate(gzip.compress(bytes(1000)), "gzip", 1000)) == 1000


FAULTS = {
    "another encoding": ("gzip", COMPRESSED, zlib.compress(b"text"), "can't be decompressed as gzip"),
    "no encoding": ("identity", COMPRESSED, gzip.compress(b"text"), "its encoding is identity"),
    "cut off": ("gzip", COMPRESSED, gzip.compress(b"text")[:-1], "can't be decompressed"),
    "bytes after the end": ("gzip", COMPRESSED, gzip.compress(b"text") + b"x", "can't be decompressed"),
    "too many members": ("gzip", COMPRESSED, gzip.compress(b"") * 17, "can't be decompressed"),
    "a member that is cut off": ("gzip", COMPRESSED, (gzip.compress(b"") * 2)[:-1], "can't be decompressed"),
    "deflate has no members": ("deflate", COMPRESSED, zlib.compress(b"") * 2, "can't be decompressed"),
    "nothing": ("gzip", COMPRESSED, b"", "can't be decompressed"),
    "unknown flags": ("gzip", 2, b"text", r"unknown flags \(0x02\)"),
    "gRPC-Web's trailers": ("identity", 0x80, b"text", r"unknown flags \(0x80\)"),
}


@pytest.mark.parametrize(("encoding", "flags", "data", "expected"), FAULTS.values(), ids=FAULTS)
def test_message_that_cannot_be_read_is_an_internal_error(encoding, flags, data, expected):
    reader = MessageReader(1000, encoding)
    reader.feed(encode_frame(data, flags))
    with pytest.raises(MessageError, match=expected) as caught:
        reader.read_message()
    assert caught.value.code == Code.INTERNAL


@given(st.sampled_from(["gzip", "deflate", "identity"]), st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_message_error(encoding, data):
    reader = MessageReader(100, encoding)
    reader.feed(data)
    try:
        while (message := reader.read_message()) is not None:
            assert len(message) <= 100
    except MessageError:
        return
