"""Reported faults of upstreams, played by a raw server to a whole bridge, in pieces of many sizes.

The cases are tests/vectors/cases: the bytes of an answer, how the connection ends, and the result.
"""

import asyncio
import contextlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionRequest
from tests.kit.client import Answer, Failure, chat
from tests.kit.upstreams import Peer, cut, start_server
from tests.kit.waiting import WAIT_S, eventually

FOLDER = Path(__file__).parent.parent / "vectors/cases"
CASES: dict[str, dict[str, Any]] = json.loads((FOLDER / "expected.json").read_bytes())
PLAYS = [(name, method) for name, case in CASES.items() for method in case["methods"]]
HEARTBEAT_S = 0.05


def cut_in_ways(data: bytes, pauses_at: list[int], seed: str) -> list[list[bytes]]:
    """Return the bytes as they were reported, at once, byte by byte, and in random pieces."""
    chance = random.Random(seed)
    reported = cut(data, [at - before for before, at in zip([0, *pauses_at], pauses_at, strict=False)])
    by_chance = [cut(data, [chance.choice((1, 2, 3, 10, 50, 200)) for _ in data]) for _ in range(3)]
    return [reported, [data], cut(data, [1] * len(data)), *by_chance]


def build_request(case: dict[str, Any]) -> CreateChatCompletionRequest:
    if "request" not in case:
        return chat()
    return json_format.ParseDict(case["request"], CreateChatCompletionRequest())


@pytest.mark.parametrize(("name", "method"), PLAYS, ids=[f"{name}-{method}" for name, method in PLAYS])
async def test_reported_fault_has_one_outcome_in_any_cut(start_bridge, upstream_engine, name, method):
    case = CASES[name]
    expected = case | case.get("httpx", {}) if upstream_engine == "httpx" else case
    data = (FOLDER / f"{name}.txt").read_bytes()
    plays = cut_in_ways(data, case["pauses_at"], name)
    pending = list(plays)

    async def serve(peer: Peer) -> None:
        while pending:
            await peer.read_request()
            await peer.write(*pending.pop(0))
            if case["then"] != "keep":
                break
        if case["then"] == "reset":
            await peer.wait_until_received()
            peer.reset()
        elif case["then"] == "open":
            assert await peer.read_to_end() == b""  # a connection with excess bytes serves no other call
        elif case["then"] == "heartbeats":
            await send_heartbeats(peer)

    async with start_server(serve) as server:
        bridge = await start_bridge(upstream={"base_url": server.url})
        for _ in plays:
            answer = await bridge.ask(
                build_request(case), stream=method == "stream", timeout=WAIT_S, metadata=case.get("metadata")
            )
            assert describe_outcome(answer, expected) == expected
            record = await bridge.records.next()
            assert record.upstream_status in {expected.get("http_status") or None, 200}
        pending.clear()
        if case["then"] != "keep":
            await eventually(lambda: all(peer.writer.is_closing() for peer in server.peers))
    assert len(server.requests) in {len(plays), 0 if expected.get("http_status") == 0 else len(plays)}
    check_forwarded(server.requests, case)


async def send_heartbeats(peer: Peer) -> None:
    """Send a comment now and then, in chunks, until the bridge ends the connection."""
    reading = asyncio.ensure_future(peer.read_to_end())
    with contextlib.suppress(ConnectionError):
        while not reading.done():
            await peer.write(b"4\r\n: \n\n\r\n")
            await asyncio.wait({reading}, timeout=HEARTBEAT_S)
    assert await reading == b""  # nor does this one


def check_forwarded(requests: list[bytes], case: dict[str, Any]) -> None:
    """The gateway gets one request id, the first."""
    for key, value in case.get("metadata", [])[:1]:
        assert all(request.lower().count(f"{key}: {value}\r\n".encode()) == 1 for request in requests)


def describe_outcome(answer: Answer, expected: dict[str, Any]) -> dict[str, Any]:
    """Return the result of the call in the form of `expected`."""
    found = dict(expected)
    failure = answer.failure
    found["outcome"] = f"{failure.code} {failure.reason}" if failure else "OK"
    if "chunks" in expected:
        found["chunks"] = len(answer.messages)
    if "text" in expected:
        found["text"] = answer.text
    if "tool_indices" in expected:
        calls = [call for chunk in answer.messages for choice in chunk.choices for call in choice.delta.tool_calls]
        found["tool_indices"] = [call.index if call.HasField("index") else None for call in calls]
    if failure is not None:
        found |= describe_failure(failure, expected)
    return found


def describe_failure(failure: Failure, expected: dict[str, Any]) -> dict[str, Any]:
    """Return what the status says, as far as `expected` asks for it."""
    found: dict[str, Any] = {"http_status": int(failure.info.metadata.get("httpStatus", "0"))}
    texts = "\n".join((failure.message, *map(read_texts, failure.details.values())))
    for secret in filter(None, (expected.get("secret"), *expected.get("secrets", ()))):
        assert secret not in texts
    assert "found 400" not in failure.message
    if "has" in expected:
        found["has"] = expected["has"] if expected["has"] in texts else texts
    if "hasnt" in expected:
        found["hasnt"] = expected["hasnt"] if expected["hasnt"] not in texts else texts
    if "message" in expected:
        found["message"] = failure.message
        assert failure.upstream.message == failure.message
    if "retry_after_ms" in expected:
        found["retry_after_ms"] = failure.details["RetryInfo"].retry_delay.ToMilliseconds()
        assert failure.trailers["grpc-retry-pushback-ms"] == str(found["retry_after_ms"])
    if "violation" in expected:
        found["violation"] = failure.details["BadRequest"].field_violations[0].field
    if "resource" in expected:
        info = failure.details.get("ResourceInfo")
        found["resource"] = info.resource_type if info else None
    if "prompt_tokens" in expected:
        found["prompt_tokens"] = failure.upstream.partial_usage.prompt_tokens
    if found["http_status"]:
        assert failure.upstream.http_status == found["http_status"]
        assert failure.upstream.chunks_delivered == expected.get("chunks", failure.upstream.chunks_delivered)
    return found


def read_texts(detail: Any) -> str:
    """Return a detail's texts."""
    return json.dumps(json_format.MessageToDict(detail), ensure_ascii=False).replace('\\"', '"').replace("\\\\", "\\")


def test_every_case_has_its_bytes_and_its_origin():
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(CASES)
    assert all(case["after"] and case["rule"] for case in CASES.values())
