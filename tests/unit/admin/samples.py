"""Calls and requests that the tests of the admin port share."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

from bridge import __version__
from bridge.admin.connection import Limits, make_connection_class
from bridge.admin.history import History
from bridge.admin.site import Shown, Site
from bridge.http_server.shell import serve_http
from bridge.settings import Loaded, Settings
from bridge.tcp import listen_tcp
from bridge.telemetry import CallRecord
from bridge.telemetry.caller_counts import CallerCounts
from bridge.telemetry.failures import Failures
from bridge.telemetry.metrics import Metrics, Reader
from tests.kit.waiting import WAIT_S

EVIL = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
FAILURES = [
    {
        "code": "UNAVAILABLE",
        "reason": "UPSTREAM_UNREACHABLE",
        "upstream_status": None,
        "upstream_s": None,
        "detail": "cannot connect to api.gateway.orgn.com:443: Connection refused",
    },
    {
        "code": "ABORTED",
        "reason": "INCOMPLETE_COMPLETION",
        "method": "StreamChatCompletion",
        "model": "claude-sonnet-4-5",
        "detail": "the stream ended before each choice had its finish_reason",
    },
    {
        "code": "RESOURCE_EXHAUSTED",
        "reason": "UPSTREAM_RATE_LIMITED",
        "upstream_status": 429,
        "method": "CreateChatCompletion",
    },
    {"code": "NOT_FOUND", "reason": "UPSTREAM_NOT_FOUND", "upstream_status": 404, "model": EVIL},
    {"code": "DEADLINE_EXCEEDED", "model": "llama-3.3-70b"},
    {"code": "ABORTED", "reason": "INCOMPLETE_COMPLETION", "method": "StreamChatCompletion", "model": "gpt-5-mini"},
    {"code": "INTERNAL", "reason": "UPSTREAM_INTERNAL", "upstream_status": 500, "request_id": EVIL},
    {"code": "CANCELLED", "model": "a-client-that-disconnects"},
]


def make_record(**fields) -> CallRecord:
    defaults = {
        "method": "StreamChatCompletion",
        "code": "OK",
        "reason": "",
        "model": "gpt-5-mini",
        "request_id": "3b1f2a5e-1c7d-4f0e-9a55-0f9be31d2c11",
        "peer": "ipv4:127.0.0.1:1",
        "duration_s": 1.4,
        "upstream_status": 200,
        "upstream_s": 1.3,
        "first_chunk_s": 0.21,
        "chunks": 40,
        "prompt_tokens": 120,
        "completion_tokens": 80,
        "request_bytes": 400,
        "response_bytes": 5000,
    }
    return CallRecord(**defaults | fields)


def make_metrics(connections: int = 0, **readers: Reader) -> Metrics:
    return Metrics(__version__, {"connections": lambda: connections, **readers})


def begin_call(metrics: Metrics, method: str = "StreamChatCompletion") -> None:
    metrics.start(method)


def end_call(metrics: Metrics, record: CallRecord) -> None:
    metrics.end(record)


def count_call(metrics: Metrics, record: CallRecord) -> None:
    begin_call(metrics, record.method)
    end_call(metrics, record)


def keep_failure(failures: Failures, record: CallRecord) -> None:
    failures.end(record)


def make_loaded(**settings) -> Loaded:
    return Loaded(settings=Settings(**{"admin_listen": "127.0.0.1:0"} | settings), origins={})


async def make_site(
    metrics: Metrics | None = None,
    failures: Failures | None = None,
    callers: CallerCounts | None = None,
    *,
    is_serving: Callable[[], bool] = lambda: True,
    loaded: Loaded | None = None,
    history: History | None = None,
) -> Site:
    metrics = metrics or make_metrics()
    if history is None:
        history = History(metrics)
        await history.poll()
    shown = Shown(failures or Failures(), callers or CallerCounts(), is_serving)
    return Site(loaded or make_loaded(), metrics, shown, history, address="127.0.0.1:50051")


@contextlib.asynccontextmanager
async def serve(application, *, port: int = 0, **limits) -> AsyncIterator[tuple[str, int]]:
    """Serve an application, and yield where."""
    sockets = listen_tcp("127.0.0.1", port)
    where = sockets[0].getsockname()
    async with serve_http(application, sockets, make_connection_class(Limits(**limits))):
        yield where


class Response(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


async def send(where, request: bytes) -> Response:
    """Send raw bytes, and return what has come when the server has closed."""
    reader, writer = await asyncio.open_connection(*where)
    writer.write(request)
    head, _, body = (await read_all(reader, writer)).partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    return Response(int(status.split()[1]), headers, body)


async def read_all(reader, writer) -> bytes:
    """Return what comes until the server closes the connection, by FIN or RST."""
    chunks = []
    async with asyncio.timeout(WAIT_S):
        with contextlib.suppress(ConnectionResetError):
            while chunk := await reader.read(65536):
                chunks.append(chunk)
    writer.close()
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        await writer.wait_closed()
    return b"".join(chunks)


async def fetch(where, path: str = "/", *, method: str = "GET", host: str = "127.0.0.1") -> Response:
    return await send(where, f"{method} {path} HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
