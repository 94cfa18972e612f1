"""Tests of bridge/upstream/call.py: what is known of a call before it is sent."""

from bridge.core.errors import NOTHING_ASKED
from bridge.upstream.call import UpstreamCall


def test_new_call_knows_nothing_and_shares_nothing():
    one, other = UpstreamCall(), UpstreamCall()
    one.headers.append(("x-request-id", "r-1"))
    one.returned.append(("x-request-id", "r-1"))
    assert (other.headers, other.returned, other.asked) == ([], [], NOTHING_ASKED)
    assert {other.http_status, other.sent_at, other.first_chunk_at, other.ended_at} == {None}
    assert other.waited_s == 0
