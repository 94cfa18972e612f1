"""Tests of bridge/server/h2/blocks.py: header blocks in one frame or many, and those without an end."""

import pytest

from bridge.server.h2.blocks import BlockReader
from bridge.server.h2.frames import CONTINUATION, ErrorCode, Http2Error
from bridge.server.h2.limits import Limits
from tests.unit.server.h2.raw import BLOCK, END, END_HEADERS, REQUEST

LIMITS = Limits(continuations_max=3, block_bytes_max=200, list_bytes_max=300)
assert CONTINUATION == 9


def test_block_of_one_frame_is_read():
    assert BlockReader(LIMITS).take_headers(END | END_HEADERS, 5, BLOCK) == (5, REQUEST, True)


@pytest.mark.parametrize("cut", [0, 1, 40, len(BLOCK)])
def test_block_of_many_frames_is_read(cut):
    reader = BlockReader(LIMITS)
    assert reader.take_headers(0, 5, BLOCK[:cut]) is None
    assert (reader.is_open, reader.held) == (True, cut)
    assert reader.take_continuation(0, 5, b"") is None
    assert reader.take_continuation(END_HEADERS, 5, BLOCK[cut:]) == (5, REQUEST, False)
    assert (reader.is_open, reader.held) == (False, 0)


def read_fault(reader: BlockReader, flags: int, stream_id: int, payload: bytes) -> tuple[int, str]:
    with pytest.raises(Http2Error) as caught:
        reader.take_continuation(flags, stream_id, payload)
    return caught.value.code, caught.value.reason


def test_continuation_without_headers_is_a_fault():
    assert read_fault(BlockReader(LIMITS), END_HEADERS, 1, b"") == (ErrorCode.PROTOCOL_ERROR, "protocol_error")
    reader = BlockReader(LIMITS)
    reader.take_headers(0, 1, b"")
    assert read_fault(reader, END_HEADERS, 3, b"") == (ErrorCode.PROTOCOL_ERROR, "protocol_error")


def test_headers_on_a_servers_stream_are_a_fault():
    for stream_id in (0, 2):
        with pytest.raises(Http2Error):
            BlockReader(LIMITS).take_headers(END_HEADERS, stream_id, BLOCK)


def test_block_of_too_many_frames_is_a_flood():
    reader = BlockReader(LIMITS)
    reader.take_headers(0, 1, b"")
    for _ in range(3):
        reader.take_continuation(0, 1, b"")
    assert read_fault(reader, 0, 1, b"") == (ErrorCode.ENHANCE_YOUR_CALM, "continuation_flood")


def test_block_that_is_too_large_is_a_flood():
    reader = BlockReader(LIMITS)
    reader.take_headers(0, 1, bytes(150))
    assert read_fault(reader, 0, 1, bytes(51)) == (ErrorCode.ENHANCE_YOUR_CALM, "continuation_flood")


def test_headers_above_the_limit_are_not_kept():
    assert BlockReader(Limits(list_bytes_max=100)).take_headers(END_HEADERS, 1, BLOCK) == (1, None, False)


def test_block_that_stands_for_far_too_much_is_a_bomb():
    with pytest.raises(Http2Error) as caught:
        BlockReader(Limits(list_bytes_max=10)).take_headers(END_HEADERS, 1, BLOCK)
    assert (caught.value.code, caught.value.reason) == (ErrorCode.ENHANCE_YOUR_CALM, "header_bomb")


def test_block_that_cannot_be_decoded_is_a_fault_of_compression():
    with pytest.raises(Http2Error, match="index 0") as caught:
        BlockReader(LIMITS).take_headers(END_HEADERS, 1, b"\x80")
    assert caught.value.code == ErrorCode.COMPRESSION_ERROR
