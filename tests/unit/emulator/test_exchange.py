"""Tests of bridge/emulator/exchange.py."""

import json

import pytest

from bridge.emulator import Exchange


def test_record_is_json_and_hides_the_authorization():
    exchange = Exchange("POST", "/", {"authorization": "Bearer sk-ollm-secret", "a": "b"}, b"abc", received_at=1.5)
    record = json.loads(json.dumps(exchange.record()))
    assert (record["headers"], record["authorization"], record["body_bytes"]) == ({"a": "b"}, True, 3)
    assert (record["method"], record["path"], record["received_at"]) == ("POST", "/", 1.5)
    assert (record["json"], record["tags"], record["billed"]) == (None, {}, False)
    assert (record["status"], record["events_sent"], record["finished"], record["closed_at"]) == (None, 0, False, None)
    assert len(record) == 13


async def test_waiting_for_a_peer_that_stays_times_out():
    exchange = Exchange("GET", "/", {}, b"")
    with pytest.raises(TimeoutError):
        await exchange.wait_closed(timeout_s=0.01)


async def test_peer_that_has_disconnected_is_not_waited_for():
    exchange = Exchange("GET", "/", {}, b"", closed_at=2.0)
    exchange.closed.set()
    assert await exchange.wait_closed() == 2.0
