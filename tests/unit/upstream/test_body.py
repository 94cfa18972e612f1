"""Tests of bridge/upstream/body.py: content encodings, and what is yielded before a body breaks off."""

import gzip
import random
import zlib
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.errors import BridgeError
from bridge.settings import UpstreamSettings
from bridge.upstream.body import DECODED_BYTES_MAX, EventBody
from bridge.upstream.call import UpstreamCall
from bridge.upstream.exchange import ConnectionLostError, EngineError
from tests.unit.upstream.parsing import cut

TEXT = b'{"text":"' + b"abc" * 1000 + b'"}'


class Scripted:
    """An answer whose body comes in given pieces, of which some wait already, and may end in a failure."""

    status = 200

    def __init__(self, pieces: Iterable[bytes], *, encoding: bytes = b"", failure: EngineError | None = None) -> None:
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


async def read(answer: Scripted, **settings: Any) -> tuple[list[bytes], BridgeError | None]:
    body = EventBody(answer, UpstreamCall(headers=[], http_status=200), UpstreamSettings(**settings))
    pieces = [piece async for piece in body]
    return pieces, body.failure


ENCODED = {
    "none": (b"", TEXT),
    "identity": (b"identity", TEXT),
    "identity twice": (b"identity, identity", TEXT),
    "a charset": (b"UTF-8", TEXT),
    "binary": (b"binary", TEXT),
    "the word none": (b"none", TEXT),
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


async def test_decoded_pieces_are_small_whatever_they_were_encoded_to():
    found, failure = await read(Scripted([gzip.compress(bytes(10_000_000))], encoding=b"gzip"))
    assert (sum(map(len, found)), failure) == (10_000_000, None)
    assert max(map(len, found)) <= DECODED_BYTES_MAX


UNDECODABLE = {
    "br": (b"br", b"\x0b\x02\x80{}\x03", b"", "content-encoding br"),
    "two encodings": (b"gzip, gzip", gzip.compress(gzip.compress(TEXT)), b"", "content-encoding gzip, gzip"),
    "an encoding that is no name": (b"<secret>", b"{}", b"", "content-encoding unknown"),
    "gzip that is none": (b"gzip", b"{}", b"", "content-encoding gzip: Error -3"),
    "deflate that is none": (b"deflate", b"\xff\xff", b"", "content-encoding deflate: Error -3"),
    "gzip with a broken sum": (b"gzip", gzip.compress(TEXT)[:-8] + bytes(8), TEXT, "incorrect data check"),
    "gzip and more": (b"gzip", gzip.compress(TEXT) + b"more", TEXT, "content-encoding gzip: Error -3"),
}


@pytest.mark.parametrize(("encoding", "data", "before", "words"), UNDECODABLE.values(), ids=UNDECODABLE)
async def test_body_that_cannot_be_decoded_breaks_off(encoding, data, before, words):
    found, failure = await read(Scripted([data], encoding=encoding))
    assert before.startswith(b"".join(found))
    assert failure is not None
    assert (failure.code.name, failure.reason_name) == ("INTERNAL", "INVALID_UPSTREAM_RESPONSE")
    assert failure.message.startswith("the gateway's body can't be decoded: content-encoding ")
    assert words in failure.message
    assert failure.upstream.http_status == 200


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


async def test_body_that_broke_off_yields_nothing_more():
    answer = Scripted([], failure=ConnectionLostError("it ended"))
    body = EventBody(answer, UpstreamCall(headers=[]), UpstreamSettings())
    assert [piece async for piece in body] == []
    assert [piece async for piece in body] == []
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
