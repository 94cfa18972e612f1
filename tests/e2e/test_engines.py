"""Where the engines of the call port differ: each row of the table in docs/design.md, shown on both engines.

A row here is the table's first column. A row that other tests show names them.
"""

import asyncio
import re
import ssl
from pathlib import Path

import pytest

from tests.kit.bridges import start_bridge_here, start_bridge_process
from tests.kit.certificates import Certificates
from tests.kit.client import chat
from tests.kit.http2 import (
    DATA,
    END_STREAM,
    OPENING,
    PING,
    RST_STREAM,
    SETTINGS,
    build_fields,
    encode_block,
    encode_call,
    encode_frame,
    encode_headers,
    encode_message,
    exchange_bytes,
    find_goaway,
    find_reset,
    parse_grpc_status,
)

ROOT = Path(__file__).parents[2]
ENGINES = ("grpcio", "native")
MESSAGE = encode_message(chat().SerializeToString())
INVALID_ARGUMENT, RESOURCE_EXHAUSTED, UNIMPLEMENTED = 3, 8, 12
PROTOCOL_ERROR, ENHANCE_YOUR_CALM = 1, 11


def replace(name, value):
    return encode_block([(each, value if each == name else old) for each, old in build_fields()])


def call_with(block):
    return OPENING + encode_headers(block) + encode_frame(DATA, END_STREAM, 1, MESSAGE)


def describe(answer):
    """Return what an answer is: a status, an HTTP status, a reset, the end of its connection; or an answer to PING."""
    for kind, code in (("GOAWAY", find_goaway(answer)), ("status", parse_grpc_status(answer))):
        if code:
            return f"{kind} {code}"
    if plain := re.search(rb"(405|415).*speaks gRPC alone", answer, re.DOTALL):
        return f"HTTP {plain[1].decode()}"
    reset = find_reset(answer)
    return f"reset {reset}" if reset is not None else "OK" if parse_grpc_status(answer) == 0 else "alive"


def fill(count):
    return encode_call(MESSAGE, *((b"x-%d" % number, b"x" * 4000) for number in range(count)))


BYTES = {
    "a call without a message": (
        OPENING + encode_call(b""),
        {f"status {INVALID_ARGUMENT}"},
        {f"status {UNIMPLEMENTED}"},
    ),
    "a call with several messages": (
        OPENING + encode_call(MESSAGE + MESSAGE),
        {"OK"},
        {f"status {UNIMPLEMENTED}"},
    ),
    "another HTTP method than POST": (call_with(replace(b":method", b"GET")), {"reset 2"}, {"HTTP 405"}),
    "a content type that is not gRPC's with protobuf, or none": (
        call_with(replace(b"content-type", b"application/grpc+json")),
        {"OK"},
        {"HTTP 415"},
    ),
    "NUL, CR or LF in metadata": (
        OPENING + encode_call(MESSAGE, (b"x-request-id", b"a\nb")),
        {f"status {INVALID_ARGUMENT}"},
        {f"reset {PROTOCOL_ERROR}"},
    ),
    "metadata above 32 KiB": (
        OPENING + fill(10),
        {f"status {RESOURCE_EXHAUSTED}"},
        {f"status {RESOURCE_EXHAUSTED}"},
    ),
    "floods of resets or of frames that carry nothing": (
        OPENING + encode_frame(SETTINGS, 0, 0) * 3000 + encode_frame(PING, 0, 0, bytes(8)),
        {"alive"},
        {f"GOAWAY {ENHANCE_YOUR_CALM}"},
    ),
}
"""Bytes, and what comes of them with grpcio and with native."""

MORE = {
    "text/html": (call_with(replace(b"content-type", b"text/html")), "OK", "HTTP 415"),
    "no content type": (
        call_with(encode_block(each for each in build_fields() if each[0] != b"content-type")),
        "OK",
        "HTTP 415",
    ),
    "LF in metadata that is not forwarded": (
        OPENING + encode_call(MESSAGE, (b"x-one", b"a\nb")),
        "OK",
        f"reset {PROTOCOL_ERROR}",
    ),
    "metadata above 64 KiB": (
        OPENING + fill(20),
        f"status {RESOURCE_EXHAUSTED}",
        f"GOAWAY {ENHANCE_YOUR_CALM}",
    ),
}
"""Further cases of some rows."""

BY_OTHERS = {
    "messages of calls that are not admitted": "tests/e2e/test_admission.py",
    "a drain": "tests/e2e/test_drain.py",
    "a call that arrives as the bridge stops": "tests/e2e/test_drain.py",
    "a small message while no room is left of `receiving_bytes_max`": "tests/e2e/test_admission.py",
    "a caller that takes one large message of a stream slowly": "tests/e2e/test_admission.py",
    "calls above `calls_per_caller_max`": "tests/e2e/test_callers.py",
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("row", BYTES)
async def test_engine_answers_these_bytes_as_the_table_says(start_bridge, row, engine):
    payload, *expected = BYTES[row]
    bridge = await start_bridge(server={"engine": engine})
    assert describe(await exchange_bytes(bridge.address, payload)) in expected[ENGINES.index(engine)]
    assert (await bridge.ask(chat())).failure is None


@pytest.mark.parametrize(("payload", "grpcio", "native"), MORE.values(), ids=MORE)
async def test_engines_differ_in_a_further_case_of_a_row(start_bridge, payload, grpcio, native):
    for engine, expected in zip(ENGINES, (grpcio, native), strict=True):
        bridge = await start_bridge(server={"engine": engine})
        assert describe(await exchange_bytes(bridge.address, payload)) == expected
        assert (await bridge.ask(chat())).failure is None


async def test_call_that_is_reset_before_it_is_looked_at_is_cancelled_or_in_no_log(emulator):
    reset = encode_headers(encode_block(build_fields())) + encode_frame(RST_STREAM, 0, 1, (8).to_bytes(4))
    codes = {}
    for engine in ENGINES:
        async with start_bridge_process(emulator, server__engine=engine) as bridge:
            await exchange_bytes(bridge.address, OPENING + reset + encode_frame(PING, 0, 0, bytes(8)))
            assert (await bridge.ask(chat())).failure is None
            bridge.process.terminate()
            await bridge.wait_for_exit()
            codes[engine] = [call["code"] for call in bridge.calls]
    assert codes["native"] == ["OK"]
    assert sorted(codes["grpcio"]) in (["CANCELLED", "OK"], ["OK"])


@pytest.mark.parametrize("engine", ENGINES)
async def test_tls_is_served_with_alpn_alone_by_both(emulator, tmp_path, engine):
    certificates = Certificates(tmp_path)
    settings = {"server": {"engine": engine}, "tls": certificates.settings, "upstream": {"base_url": emulator.url}}
    async with start_bridge_here(**settings) as bridge:
        for protocols, status in ((["h2"], 0), (["http/1.1"], None), ([], None)):
            context = ssl.create_default_context(cadata=certificates.root.decode())
            if protocols:
                context.set_alpn_protocols(protocols)
            assert await call_over_tls(bridge.address, context) == status


async def call_over_tls(address, context):
    """Return the status of a call; None if the connection is closed instead."""
    host, _, port = address.rpartition(":")
    answer = b""
    try:
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname="localhost")
        writer.write(OPENING + encode_call(MESSAGE))
        while parse_grpc_status(answer) is None and (data := await reader.read(10_000)):
            answer += data
        writer.close()
    except (ssl.SSLError, ConnectionError):
        pass
    return parse_grpc_status(answer)


BY_NAME = {
    "a call that its caller resets before it is looked at": (
        test_call_that_is_reset_before_it_is_looked_at_is_cancelled_or_in_no_log
    ),
}


def test_every_row_of_the_table_is_shown():
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    table = page.partition("| what | grpcio | native |\n")[2].partition("\n\n")[0]
    rows = [line.strip().split(" | ")[0].removeprefix("| ") for line in table.splitlines()[1:]]
    assert sorted(rows) == sorted([*BYTES, *BY_OTHERS, *BY_NAME])
    assert all((ROOT / path).exists() for path in BY_OTHERS.values())
