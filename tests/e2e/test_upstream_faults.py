"""Reported faults of upstreams, played by a raw server to a whole bridge, in pieces of many sizes.

The cases are tests/vectors/upstream_faults: the bytes of an answer, how the connection ends, and the result.
"""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Answer, chat, eventually
from tests.unit.upstream.engines import BOUND_S, Peer, cut, start_server

FOLDER = Path(__file__).parent.parent / "vectors/upstream_faults"
CASES: dict[str, dict[str, Any]] = json.loads((FOLDER / "expected.json").read_bytes())
PLAYS = [(name, method) for name, case in CASES.items() for method in case["methods"]]


def cut_in_ways(data: bytes, pauses_at: list[int], seed: str) -> list[list[bytes]]:
    """Return the bytes as they were reported, at once, byte by byte, and in random pieces."""
    chance = random.Random(seed)
    reported = cut(data, [at - before for before, at in zip([0, *pauses_at], pauses_at, strict=False)])
    by_chance = [cut(data, [chance.choice((1, 2, 3, 10, 50, 200)) for _ in data]) for _ in range(3)]
    return [reported, [data], cut(data, [1] * len(data)), *by_chance]


@pytest.mark.parametrize(("name", "method"), PLAYS, ids=[f"{name}-{method}" for name, method in PLAYS])
async def test_reported_fault_has_one_outcome_in_any_cut(start_bridge, upstream_engine, name, method):
    case = CASES[name]
    expected = case | case.get("httpx", {}) if upstream_engine == "httpx" else case
    data = (FOLDER / f"{name}.txt").read_bytes()
    plays = cut_in_ways(data, case["pauses_at"], name)
    pending = list(plays)

    async def serve(peer: Peer) -> None:
        await peer.read_request()
        await peer.write(*pending.pop(0))
        if case["then"] == "reset":
            peer.reset()
        elif case["then"] == "open":
            assert await peer.read_to_end() == b""  # a connection with excess bytes serves no other call

    async with start_server(serve) as server:
        bridge = await start_bridge(upstream={"base_url": server.url})
        for _ in plays:
            assert (
                describe_outcome(await bridge.ask(chat(), stream=method == "stream", timeout=BOUND_S), expected)
                == expected
            )
            record = await bridge.records.next()
            assert record.upstream_status in {expected.get("http_status") or None, 200}
        await eventually(lambda: all(peer.writer.is_closing() for peer in server.peers), BOUND_S)
    assert len(server.requests) == len(server.peers) == len(plays)


def describe_outcome(answer: Answer, expected: dict[str, Any]) -> dict[str, Any]:
    """Return the result of the call in the form of `expected`."""
    found = dict(expected)
    failure = answer.failure
    found["outcome"] = f"{failure.code} {failure.reason}" if failure else "OK"
    if "chunks" in expected:
        found["chunks"] = len(answer.messages)
    if "text" in expected:
        found["text"] = answer.text
    if failure is not None:
        found["http_status"] = int(failure.info.metadata.get("httpStatus", "0"))
        assert expected.get("secret", "no secret") not in f"{failure.message} {failure.details}"
        assert "found 400" not in failure.message
        if "retry_after_ms" in expected:
            found["retry_after_ms"] = failure.details["RetryInfo"].retry_delay.ToMilliseconds()
        if expected.get("chunks"):
            assert failure.upstream.chunks_delivered == expected["chunks"]
    return found
