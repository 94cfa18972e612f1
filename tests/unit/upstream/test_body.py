"""Tests of bridge/upstream/body.py: content encodings, and what is yielded before a body breaks off."""

import asyncio
import gzip
import random
import time
import zlib
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.errors import BridgeError
from bridge.settings import UpstreamSettings
from bridge.upstream.body import EXCERPT_BYTES, PART_BYTES_MAX, RAW_BYTES_MAX, EventBody
from bridge.upstream.call import UpstreamCall
from bridge.upstream.exchange import ConnectionLostError, EngineError, ReadTimeoutError
from tests.kit.parsing import cut

TEXT = b'{"text":"' + b"abc" * 1000 + b'"}'


class Scripted:
    """An answer whose body comes in given pieces, of which some wait already, and may end in a failure."""

    def __init__(
        self, pieces: Iterable[bytes], *, status: int = 200, encoding: bytes = b"", failure: EngineError | None = None
    ) -> None:
        self.status = status
        self.headers = [(b"content-encoding", encoding)] if encoding else []
        self.timeouts: list[float] = []
        self._pieces = list(pieces)
        self._failure = failure

    def read_nowait(self) -> bytes:
        return self._pieces.pop(0) if len(self._pieces) % 2 else b""

    async def read(self, timeout_s: float) -> bytes:
        self.timeouts.append(timeout_s)
        if self._pieces:
            return self._pieces.pop(0)
        if self._failure is not None:
            raise self._failure
        return b""

    def close(self) -> None:
        pass


def compress_raw(data: bytes) -> bytes:
    """Deflate without zlib's header and sum."""
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(data) + stream.flush()


async def read(answer: Scripted, *, streamed: bool = False, **settings: Any) -> tuple[list[bytes], BridgeError | None]:
    call = UpstreamCall(headers=[], http_status=answer.status, streamed=streamed)
    body = EventBody(answer, call, UpstreamSettings(**settings), is_stream=streamed)
    pieces = [piece async for piece in body]
    return pieces, body.failure


ENCODED = {
    "none": (b"", TEXT),
    "a name of none": (b"UTF-8, identity", TEXT),
    "gzip": (b"gzip", gzip.compress(TEXT)),
    "gzip and identity": (b"gzip, identity", gzip.compress(TEXT)),
    "x-gzip": (b"X-GZip", gzip.compress(TEXT)),
    "gzip that is zlib": (b"gzip", zlib.compress(TEXT)),
    "gzip of two members": (b"gzip", gzip.compress(TEXT[:500]) + gzip.compress(TEXT[500:])),
    "deflate": (b"deflate", zlib.compress(TEXT)),
    "deflate that is gzip": (b"deflate", gzip.compress(TEXT)),
    "raw deflate": (b"deflate", compress_raw(TEXT)),
}


@pytest.mark.parametrize("size", [1, 2, 1000, 10_000])
@pytest.mark.parametrize(("encoding", "data"), ENCODED.values(), ids=ENCODED)
async def test_encoded_body_is_decoded(encoding, data, size):
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    found, failure = await read(Scripted(pieces, encoding=encoding))
    assert (b"".join(found), failure) == (TEXT, None)


@pytest.mark.parametrize("streamed", [False, True])
async def test_decoded_parts_are_small_whatever_they_were_encoded_to(streamed):
    found, failure = await read(Scripted([gzip.compress(bytes(10_000_000))], encoding=b"gzip"), streamed=streamed)
    assert (sum(map(len, found)), failure) == (10_000_000, None)
    assert max(map(len, found)) <= PART_BYTES_MAX


@pytest.mark.parametrize("encoding", [b"", b"gzip"])
async def test_other_tasks_have_a_turn_before_each_part_of_a_large_read(encoding):
    data = bytes(50 * PART_BYTES_MAX)
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(count_turns())
    body = EventBody(
        Scripted([gzip.compress(data) if encoding else data], encoding=encoding),
        UpstreamCall(headers=[], streamed=True),
        UpstreamSettings(),
        is_stream=True,
    )
    seen = []
    async for part in body:
        assert len(part) <= PART_BYTES_MAX
        seen.append(turns)
    other.cancel()
    assert len(seen) >= 50
    assert len(set(seen)) == len(seen)


async def test_small_read_of_a_stream_is_yielded_as_it_came():
    found, _ = await read(Scripted([b"a", b"b" * PART_BYTES_MAX]), streamed=True)
    assert found == [b"a", b"b" * PART_BYTES_MAX]


PLAIN = b'{"error": {"message": "bad key"}}'
UNDECODABLE = {
    # coding, body, what is decoded before, words of the message, the excerpt
    "br": (b"br", b"\x0b\x02\x80{}\x03", b"", "content-encoding br, 6 bytes", None),
    "br that is plain": (b"br", PLAIN, b"", "content-encoding br, 33 bytes", PLAIN),
    "two codings": (b"gzip, gzip", gzip.compress(gzip.compress(TEXT)), b"", "content-encoding gzip, gzip", None),
    "a coding that is no name": (b"<secret>", PLAIN, b"", "content-encoding unknown", PLAIN),
    "gzip that is plain": (b"gzip", PLAIN, b"", "content-encoding gzip, 33 bytes: Error -3", PLAIN),
    "gzip that is more than an excerpt": (
        b"gzip",
        PLAIN * 1000,
        b"",
        f"content-encoding gzip, more than {EXCERPT_BYTES} bytes: Error -3",
        (PLAIN * 1000)[:EXCERPT_BYTES],
    ),
    "deflate that is none": (b"deflate", b"\xff\xff", b"", "content-encoding deflate, 2 bytes: Error -3", None),
    "gzip with a broken sum": (b"gzip", gzip.compress(TEXT)[:-8] + bytes(8), TEXT, "incorrect data check", None),
    "gzip that ends in its head": (b"gzip", gzip.compress(TEXT)[:5], b"", "5 bytes: it ends before its first", None),
    "gzip of one byte": (b"gzip", b"\x1f", b"", "content-encoding gzip, 1 bytes: it ends before", None),
    "gzip and more": (b"gzip", gzip.compress(TEXT) + b"more", TEXT, "content-encoding gzip, ", None),
}


@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize(("encoding", "data", "before", "words", "excerpt"), UNDECODABLE.values(), ids=UNDECODABLE)
async def test_body_that_cannot_be_decoded_says_its_coding_and_size(encoding, data, before, words, excerpt, size):
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    found, failure = await read(Scripted(pieces, encoding=encoding))
    assert before.startswith(b"".join(found))
    assert failure is not None
    assert (failure.code.name, failure.reason_name) == ("INTERNAL", "INVALID_UPSTREAM_RESPONSE")
    assert failure.message.startswith("the gateway's body can't be decoded: content-encoding ")
    assert words in failure.message
    assert failure.upstream.http_status == 200
    assert failure.upstream.HasField("body_excerpt") == (excerpt is not None)
    assert failure.upstream.body_excerpt.encode() == (excerpt or b"")


@pytest.mark.parametrize(("status", "size"), [(200, EXCERPT_BYTES), (429, RAW_BYTES_MAX)])
async def test_body_that_cannot_be_decoded_is_read_only_so_far(status, size):
    answer = Scripted([bytes(1000)] * 1000, status=status, encoding=b"br")
    body = EventBody(answer, UpstreamCall(), UpstreamSettings())
    assert [part async for part in body] == []
    assert body.raw_start == bytes(size)


async def test_key_in_the_excerpt_of_a_body_is_redacted():
    _, failure = await read(Scripted([b"the key sk-abcdefghijkl is bad"], encoding=b"br"))
    assert failure.upstream.body_excerpt == "the key sk-[redacted] is bad"


@pytest.mark.parametrize("encoding", [b"", b"gzip"])
async def test_what_came_before_a_failure_is_yielded(encoding):
    data = gzip.compress(TEXT) if encoding else TEXT
    lost = ConnectionLostError("it ended in the body of the answer")
    found, failure = await read(Scripted([data[:300], data[300:]], encoding=encoding, failure=lost))
    assert b"".join(found) == TEXT
    assert failure is not None
    assert failure.__cause__ is lost
    assert failure.message == "the connection to the gateway was lost: it ended in the body of the answer"


async def test_each_wait_has_its_limit():
    answer = Scripted([b"a", b"b", b"c", b"d"])
    await read(answer, idle_timeout_s=7)
    assert answer.timeouts
    assert set(answer.timeouts) == {7}


async def test_comments_count_as_data_before_the_first_chunk():
    """Each wait has the whole limit, however long ago the request was sent."""
    answer = Scripted([b": hi\n"] * 20)
    call = UpstreamCall(sent_at=time.monotonic() - 1000, waited_s=1000)
    body = EventBody(answer, call, UpstreamSettings(first_chunk_timeout_s=40), is_stream=True)
    assert b"".join([piece async for piece in body]) == b": hi\n" * 20
    assert body.failure is None
    assert answer.timeouts == [40] * 11  # the last one for the end


class Chatty(Scripted):
    """An answer that brings a comment a moment after each read, without end."""

    def read_nowait(self) -> bytes:
        return b""

    async def read(self, timeout_s: float) -> bytes:
        self.timeouts.append(timeout_s)
        await asyncio.sleep(min(0.005, timeout_s))
        if timeout_s <= 0.005:
            raise ReadTimeoutError("nothing came in time")
        return b": ping\n\n"


async def test_comments_do_not_extend_the_time_without_output():
    answer = Chatty([])
    call = UpstreamCall(first_chunk_at=1.0)
    settings = UpstreamSettings(stall_timeout_s=0.05, first_chunk_timeout_s=0.01)
    body = EventBody(answer, call, settings, is_stream=True)
    body.waits.note_output()
    pieces = [piece async for piece in body]
    assert pieces
    assert body.failure is not None
    assert body.failure.message == "no output from the gateway for 0.05 s (upstream.stall_timeout_s)"


class Silent(Scripted):
    """An answer that brings heartbeats without end, or nothing more."""

    def __init__(self, heartbeat: bytes) -> None:
        super().__init__([])
        self._heartbeat = heartbeat

    async def read(self, timeout_s: float) -> bytes:
        self.timeouts.append(timeout_s)
        await asyncio.sleep(0.001 if self._heartbeat else timeout_s)
        if self._heartbeat:
            return self._heartbeat
        raise ReadTimeoutError("nothing came in time")


@pytest.mark.parametrize("heartbeat", [b"", b": ping\n"])
@pytest.mark.parametrize("limit_s", [0.0, 0.02])
async def test_body_whose_end_is_bounded_ends_without_a_failure(limit_s, heartbeat):
    answer = Silent(heartbeat)
    body = EventBody(answer, UpstreamCall(), UpstreamSettings())
    body.waits.end_within(limit_s, anew=True)
    async for part in body:
        assert part == heartbeat
        body.waits.end_within(limit_s, anew=False)
    assert (body.failure, body.has_ended) == (None, False)
    assert max(answer.timeouts, default=0) <= limit_s


async def test_limits_of_the_body_are_those_of_its_reads():
    answer = Scripted([b"a"] * 4)
    body = EventBody(answer, UpstreamCall(), UpstreamSettings())
    body.waits.end_within(10, anew=True)
    await anext(body)
    await anext(body)
    body.waits.keep_open()
    assert [part async for part in body] == [b"a", b"a"]
    assert body.has_ended
    assert answer.timeouts[0] <= 10
    assert set(answer.timeouts[1:]) == {UpstreamSettings().idle_timeout_s}


async def test_body_that_broke_off_yields_nothing_more():
    answer = Scripted([], failure=ConnectionLostError("it ended"))
    body = EventBody(answer, UpstreamCall(headers=[]), UpstreamSettings())
    assert [piece async for piece in body] == []
    assert [piece async for piece in body] == []
    assert not body.has_ended
    assert len(answer.timeouts) == 1


@given(
    data=st.binary(max_size=2000),
    compress=st.sampled_from([(b"gzip", gzip.compress), (b"deflate", zlib.compress), (b"deflate", compress_raw)]),
    seed=st.integers(0, 2**32),
)
async def test_any_content_comes_through_any_encoding_at_any_cut(data, compress, seed):
    encoding, function = compress
    pieces = cut(function(data), random.Random(seed))
    found, failure = await read(Scripted(pieces, encoding=encoding))
    assert (b"".join(found), failure) == (data, None)
