"""Requests that no stock client sends.

From grpcio 1.84.0 on, one request whose `:path` is not UTF-8 shuts an aio server down; the family is pinned to the
release before. These tests send that request.
"""

import pytest

from tests.kit.client import chat
from tests.kit.http2 import PATH, encode_connection, exchange_bytes


async def test_raw_call_is_a_valid_call(bridge):
    assert b"You said: hello there" in await exchange_bytes(bridge.address, encode_connection(chat()))


async def test_path_that_is_not_utf8_does_not_shut_the_server_down(bridge):
    for path in (b"/\xff", PATH + b"\xff", b"/\xc3\x28/x", b"\xff", b"", b"*"):
        assert await exchange_bytes(bridge.address, encode_connection(chat(), path=path))
        assert (await bridge.ask(chat())).failure is None


BAD = {
    "latin-1": b"caf\xe9",
    "utf-8": "café".encode(),
    "CR LF": b"a\r\nx-smuggled: 1",
    "NUL": b"a\x00b",
    "DEL": b"a\x7fb",
}


@pytest.mark.parametrize("name", [b"authorization", b"x-request-id", b"traceparent", b"user-agent"])
@pytest.mark.parametrize("value", BAD.values(), ids=BAD)
async def test_value_that_is_not_printable_never_reaches_the_gateway(bridge, emulator, name, value):
    await exchange_bytes(bridge.address, encode_connection(chat(), (name, value)))
    assert (await bridge.ask(chat())).failure is None
    assert len(emulator.exchanges) == 1
    refused = [record for record in bridge.records.all if record.code != "OK"]
    assert {(record.code, record.reason) for record in refused} <= {("INVALID_ARGUMENT", "INVALID_METADATA")}


async def test_metadata_of_megabytes_is_refused(bridge, emulator):
    await exchange_bytes(
        bridge.address, encode_connection(chat(), *((b"x-%d" % number, b"x" * 15_000) for number in range(100)))
    )
    assert (await bridge.ask(chat())).failure is None
    assert len(emulator.exchanges) == 1
    refused = [record for record in bridge.records.all if record.code != "OK"]
    assert all(record.reason == "INVALID_METADATA" for record in refused)
