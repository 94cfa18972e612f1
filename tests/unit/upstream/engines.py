"""Either HTTP engine: what the tests that run on both have in common.

The engines differ on purpose in what this table says; where a test differs, it refers to a row.

| | native | httpx |
|---|---|---|
| HTTP/2 | no | to https, if the upstream offers it (extra `http2`) |
| SOCKS proxies | no | `socks5://`, `socks5h://` (extra `socks`) |
| kept HTTP/1.1 connections | for `keepalive_s` | none: bytes behind an answer would be the next call's answer |
| exchanges on an HTTP/2 connection | | one at a time: a stream that is left could not be ended otherwise |
| answer after a GOAWAY | | lost: h2 takes it for the end |
| answer before the request is out | taken at once | taken when the request is out, or can't be sent |
| what has come without a wait (`read_nowait`) | returned | nothing |
| leaving a call | ends the connection at once | in the next turn of the loop |
| head of an answer | `head_bytes_max`, `head_fields_max` | 100 KiB, any number of fields |
| interim answers (1xx) | 16 | as many as come in time |
| chunk extensions and trailers | 16 to 32 KiB in a row | 100 KiB |
| chunk size | 64 bits, strictly hex | 20 hex digits; a line without an end waits for one |
| lone LF for CRLF | refused | taken in heads |
| obs-fold in a header | refused | taken as a blank |
| equal Content-Lengths | refused | one |
| Content-Length beside Transfer-Encoding | refused | Transfer-Encoding counts |
| version | HTTP/1.0, HTTP/1.1 | any digit |
| no `HTTP/` in the first bytes | not HTTP, at once | waits for a head |
| status in an `InvalidAnswerError` | once the status line came | never |
| words of an `InvalidAnswerError` | name the limit or the fault | the same for all |
"""

import contextlib
import math
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bridge.settings import UpstreamSettings
from bridge.upstream.engine import Http1Engine
from bridge.upstream.exchange import Answer, Engine, EngineError
from bridge.upstream.httpx_engine import HttpxEngine
from tests.kit.certificates import ca_file
from tests.kit.waiting import WAIT_S, eventually

ENGINES = {"native": Http1Engine, "httpx": HttpxEngine}
PATH = "/v1/chat/completions"


@contextlib.asynccontextmanager
async def open_engine(kind: str, url: str, *, connections_max: int = 100, **settings: Any) -> AsyncIterator[Engine]:
    """Run an engine of this kind, with settings as in UpstreamSettings."""
    found = UpstreamSettings(**{"base_url": url, "plaintext": True, "engine": kind, "ca_file": ca_file()} | settings)
    base = "http://localhost" if found.socket_path else found.base_url
    engine: Engine = ENGINES[kind](found, url=base + PATH, connections_max=connections_max)
    try:
        yield engine
    finally:
        await engine.close()


@dataclass(frozen=True)
class Outcome:
    """What came of an exchange: the status, what was read of the body, and the failure that it ended in."""

    status: int | None
    body: bytes = b""
    failure: type[EngineError] | None = None
    error: EngineError | None = field(default=None, compare=False)


async def exchange(
    engine: Engine,
    body: bytes = b"{}",
    headers: Sequence[tuple[str, str]] = (),
    *,
    timeout_s: float = WAIT_S,
    after: bytes | None = None,
) -> Outcome:
    """Post a request and read its answer to the end, whatever that is.

    `timeout_s` is that of each wait; with `after`, of those once so much of the answer's body has come.
    """
    status, content = None, b""

    def limit_s() -> float:
        return WAIT_S if after is not None and (status is None or len(content) < len(after)) else timeout_s

    try:
        answer = await engine.post(headers, body, timeout_s=limit_s())
        status = answer.status
        with contextlib.closing(answer):
            content += answer.read_nowait()
            while piece := await answer.read(limit_s()):
                content += piece
    except EngineError as error:
        return Outcome(status, content, type(error), error)
    return Outcome(status, content)


async def wait_until_still(count: Callable[[], int]) -> None:
    """Wait until a figure has stayed the same over many turns of the loop."""
    seen, since = count(), 0

    def is_still() -> bool:
        nonlocal seen, since
        now = count()
        seen, since = now, since + 1 if now == seen else 0
        return since > 40

    await eventually(is_still)


async def read_all(answer: Answer, timeout_s: float = math.inf) -> bytes:
    """Return the whole body."""
    pieces = [answer.read_nowait()]
    while piece := await answer.read(timeout_s):
        pieces.append(piece)
    return b"".join(pieces)
