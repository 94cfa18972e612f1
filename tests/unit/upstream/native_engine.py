"""The native engine alone, whose pool must be empty at the end, and exchanges that raise what they fail with."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from bridge.settings import UpstreamSettings
from bridge.upstream.engine import Http1Engine
from bridge.upstream.exchange import Answer, Engine
from tests.kit.certificates import ca_file
from tests.kit.waiting import WAIT_S, eventually


@contextlib.asynccontextmanager
async def open_engine(url: str, *, connections_max: int = 10, **settings: Any) -> AsyncIterator[Http1Engine]:
    """An engine that posts to a URL; at the end no place in its pool may be taken."""
    found = UpstreamSettings(**{"base_url": url, "plaintext": True, "ca_file": ca_file()} | settings)
    target = ("http://localhost" if url.startswith("unix:") else url) + "/v1/chat/completions"
    engine = Http1Engine(found, url=target, connections_max=connections_max)
    try:
        yield engine
    finally:
        await engine.close()
    await eventually(lambda: not engine.connections)


async def read_all(answer: Answer) -> bytes:
    body = b""
    while piece := await answer.read(WAIT_S):
        body += piece
    return body


async def exchange(engine: Engine, body: bytes = b"{}", *headers: tuple[str, str]) -> tuple[int, bytes]:
    """Post a body and return the status and the body of the answer."""
    answer = await engine.post(headers, body, timeout_s=WAIT_S)
    try:
        return answer.status, await read_all(answer)
    finally:
        answer.close()
