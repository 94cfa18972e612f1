"""Tests of bridge/admin/: what the port answers, in two protocols, and the page in a browser.

`python -m tests.test_admin docs/admin.png` takes the picture in docs/ anew.
"""

import asyncio
import contextlib
import json
import random
import re
import sys
import tempfile
import time
import uuid

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bridge import __version__
from bridge.admin import doorman
from bridge.admin import site as admin_module
from bridge.admin.site import _histogram, _History, _quantile, admin
from bridge.core.reasons import SERVICE_NAME
from bridge.settings import Loaded, Settings, SettingsError, load
from bridge.telemetry import CallRecord
from bridge.telemetry.failures import Failures
from bridge.telemetry.metrics import Metrics
from tests.browser import CHROMIUM, HEADLESS
from tests.conftest import eventually

NO_CHROMIUM = "no Chromium found (Debian: the package chromium), so the page is not tried in a browser"
EVIL = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
KEY = "sk-" + "k" * 24


def record(**fields) -> CallRecord:
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


FAILURES = [
    {"code": "UNAVAILABLE", "reason": "UPSTREAM_UNREACHABLE", "upstream_status": None, "upstream_s": None},
    {"code": "ABORTED", "reason": "INCOMPLETE_STREAM", "model": "claude-sonnet-4-5"},
    {
        "code": "RESOURCE_EXHAUSTED",
        "reason": "UPSTREAM_RATE_LIMITED",
        "upstream_status": 429,
        "method": "CreateChatCompletion",
    },
    {"code": "NOT_FOUND", "reason": "UPSTREAM_NOT_FOUND", "upstream_status": 404, "model": EVIL},
    {"code": "DEADLINE_EXCEEDED", "model": "llama-3.3-70b"},
    {"code": "ABORTED", "reason": "INCOMPLETE_STREAM", "model": "gpt-5-mini"},
    {"code": "INTERNAL", "reason": "UPSTREAM_INTERNAL", "upstream_status": 500, "request_id": EVIL},
    {"code": "CANCELLED", "model": "who-has-left"},
]


@contextlib.asynccontextmanager
async def shown(metrics=None, failures=None, *, serving=lambda: True, loaded: Loaded | None = None, **settings):
    """Run an admin port and give `(host, port)`."""
    loaded = loaded or Loaded(settings=Settings(**{"admin_listen": "127.0.0.1:0"} | settings), origins={})
    metrics, failures = metrics or Metrics(__version__), failures or Failures()
    async with admin(loaded, metrics, failures, serving, address="127.0.0.1:50051") as address:
        host, port = address.rsplit(":", 1)
        yield host, int(port)


async def said(where, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Give what comes back for raw bytes: status, headers and body, once the other side has closed."""
    reader, writer = await asyncio.open_connection(*where)
    writer.write(request)
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return (
        int(status.split()[1]),
        {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)},
        body,
    )


async def got(where, path: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    return await said(where, f"{method} {path} HTTP/1.1\r\nhost: admin\r\n\r\n".encode())


# HTTP


async def test_page_is_html_that_may_load_nothing_and_run_only_its_own_script():
    async with shown() as where:
        status, headers, body = await got(where, "/")
    assert status == 200
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert headers["x-content-type-options"] == "nosniff"
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert re.fullmatch(r"'sha256-[\w+/]+='", policy["script-src"])
    assert re.fullmatch(r"'sha256-[\w+/]+='", policy["style-src"])
    text = body.decode()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text)
    assert not re.search(r"(src|href)=\"?(https?:)?//", text)


async def test_health_is_200_and_serving_or_503_and_not():
    state = [True]
    async with shown(serving=lambda: state[0]) as where:
        assert (await got(where, "/healthz"))[::2] == (200, b"SERVING\n")
        state[0] = False
        assert (await got(where, "/healthz"))[::2] == (503, b"NOT_SERVING\n")
        assert json.loads((await got(where, "/status.json"))[2])["serving"] is False


async def test_metrics_are_in_prometheus_format():
    metrics = Metrics("1.2.3")
    metrics.start("StreamChatCompletion")
    metrics.end(record())
    async with shown(metrics) as where:
        status, headers, body = await got(where, "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    assert b'ollm_bridge_info{version="1.2.3"} 1.0' in body


async def test_head_of_each_page_is_answered_without_a_body():
    async with shown() as where:
        for path in ("/", "/healthz", "/metrics", "/status.json"):
            status, headers, body = await got(where, path, "HEAD")
            assert (status, body) == (200, b"")
            assert int(headers["content-length"]) > 0


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /other HTTP/1.1\r\nhost: a\r\n\r\n", 404),
        (b"GET /../etc/passwd HTTP/1.1\r\nhost: a\r\n\r\n", 404),
        (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n", 405),
        (b"DELETE /metrics HTTP/1.1\r\nhost: a\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\n" + b"x: " + b"y" * 20_000 + b"\r\n\r\n", 400),
        (b"\x16\x03\x01\x00\x05hello\r\n\r\n", 400),
        (KEY.encode() + b"\r\n\r\n", 400),
    ],
    ids=["no such page", "a path upwards", "a post", "a delete", "a long head", "TLS", "a key"],
)
async def test_what_is_no_request_for_a_page_is_refused_and_the_connection_closed(request_, status, caplog, capfd):
    async with shown() as where:
        found, _, body = await said(where, request_)
    assert found == status
    assert b"Traceback" not in body
    assert KEY not in caplog.text + "".join(capfd.readouterr())


async def test_page_that_fails_says_no_more_than_that(monkeypatch):
    metrics = Metrics(__version__)
    async with shown(metrics) as where:
        monkeypatch.setattr(metrics, "page", lambda: 1 / 0)
        status, _, body = await got(where, "/metrics")
    assert (status, body) == (500, b"the bridge could not make this page\n")


# The status


async def test_status_tells_of_calls_rates_and_failures():
    metrics, failures = Metrics(__version__, connections=lambda: 7), Failures()
    history = _History(metrics)
    await history.look()
    for fields in [{}] * 12 + FAILURES:
        metrics.start("StreamChatCompletion")
        metrics.end(record(**fields))
        failures.end(record(**fields))
    metrics.start("StreamChatCompletion")
    await history.look()
    told = history.shown()
    assert (told["calls"], told["failed"], told["in_flight"], told["connections"]) == (20, 7, 1, 7)
    assert told["calls_per_s"] == 20 / 2.5
    assert told["reasons"] == {
        "UPSTREAM_UNREACHABLE": 1,
        "INCOMPLETE_STREAM": 2,
        "UPSTREAM_RATE_LIMITED": 1,
        "UPSTREAM_NOT_FOUND": 1,
        "DEADLINE_EXCEEDED": 1,
        "UPSTREAM_INTERNAL": 1,
    }
    assert 1.28 < told["duration"]["p50"] < 2.56
    assert sum(count for _, count in told["first_chunk"]["buckets"]) == 19  # one had no upstream
    (_, _, calls, failed, in_flight) = told["line"][0]
    assert (calls, failed, in_flight) == (20, 7, 1)
    async with shown(metrics, failures) as where:
        status = json.loads((await got(where, "/status.json"))[2])
    assert status["version"] == __version__
    assert status["calls_total"] == 20
    assert [each["reason"] for each in status["failures"]] == [
        each.get("reason", "") for each in reversed(FAILURES[:-1])
    ]


async def test_status_shows_every_setting_with_its_origin_and_no_secret():
    environ = {
        "OLLM_BRIDGE_ADMIN_LISTEN": "127.0.0.1:0",
        "OLLM_BRIDGE_UPSTREAM__API_KEY": KEY,
        "OLLM_BRIDGE_UPSTREAM__PROXY": "http://user:hunter2@proxy.example:1",
    }
    async with shown(loaded=load(flags={"calls_max": 3}, environ=environ)) as where:
        body = (await got(where, "/status.json"))[2].decode()
    rows = {row["name"]: (row["value"], row["origin"]) for row in json.loads(body)["settings"]}
    assert rows["calls_max"] == ("3", "flag")
    assert rows["upstream.api_key"] == ("set, not shown", "environment")
    assert rows["upstream.proxy"] == ("set, not shown", "environment")
    assert rows["upstream.api_key_file"] == ("unset", "default")
    assert KEY not in body
    assert "hunter2" not in body


@pytest.mark.parametrize(
    ("share", "counts", "value"),
    [(0.5, [0, 10, 0, 0], 1.5), (0.5, [10, 10, 0, 0], 1.0), (0.95, [0, 0, 0, 3], 4.0), (0.5, [0, 0, 0, 0], None)],
    ids=["within a bucket", "at a bound", "beyond the last bound", "of nothing"],
)
def test_quantile(share, counts, value):
    assert _quantile(share, [1.0, 2.0, 4.0, float("inf")], counts) == value


def test_histogram_of_a_time_is_what_came_in_it():
    told = _histogram({1.0: 2, float("inf"): 3}, {1.0: 4, float("inf"): 9})
    assert told["buckets"] == [[1.0, 2], [None, 4]]


# The door


@contextlib.asynccontextmanager
async def health(where):
    async with grpc.aio.insecure_channel(f"{where[0]}:{where[1]}") as channel:
        yield health_pb2_grpc.HealthStub(channel)


async def test_same_port_speaks_grpc_health():
    state = [True]
    states = health_pb2.HealthCheckResponse
    async with shown(serving=lambda: state[0]) as where, health(where) as stub:
        for service in ("", SERVICE_NAME):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
            assert answer.status == states.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest(service="other"), timeout=5)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=10)
        assert (await watch.read()).status == states.SERVING
        state[0] = False
        assert (await watch.read()).status == states.NOT_SERVING
        watch.cancel()
        other = stub.Watch(health_pb2.HealthCheckRequest(service="other"), timeout=10)
        assert (await other.read()).status == states.SERVICE_UNKNOWN
        other.cancel()


async def test_open_watch_is_told_of_the_end_and_does_not_hold_it_up():
    async with contextlib.AsyncExitStack() as stack:
        where = await stack.enter_async_context(shown())
        async with health(where) as stub:
            watch = stub.Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            async with asyncio.timeout(5):
                await stack.aclose()
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert await watch.read() is grpc.aio.EOF


async def closed(reader, writer) -> bytes:
    """Give what comes until the other side closes, by whichever way."""
    answer = b""
    async with asyncio.timeout(5):
        with contextlib.suppress(ConnectionResetError):
            answer = await reader.read()
    writer.close()
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        await writer.wait_closed()
    return answer


@pytest.mark.parametrize("size", [1, 7])
async def test_first_bytes_may_come_in_pieces(size):
    begin = b"PRI * HTTP/"  # as HTTP/2 does
    async with shown() as where:
        reader, writer = await asyncio.open_connection(*where)
        for at in range(0, len(begin), size):
            writer.write(begin[at : at + size])
            await writer.drain()
        writer.write(b"1.1\r\nhost: a\r\n\r\n")
        assert b" 400 " in await closed(reader, writer)


async def test_who_says_nothing_is_left_out_after_a_while(monkeypatch):
    monkeypatch.setattr(doorman, "_FIRST_BYTES_S", 0.05)
    async with shown() as where:
        reader, writer = await asyncio.open_connection(*where)
        writer.write(b"PRI *")
        assert await closed(reader, writer) == b""


async def test_request_that_never_ends_is_cut_off(monkeypatch):
    monkeypatch.setattr(doorman, "_HTTP_S", 0.05)
    async with shown() as where:
        reader, writer = await asyncio.open_connection(*where)
        writer.write(b"GET / HTTP/1.1\r\nhost:")
        assert await closed(reader, writer) == b""


async def test_connections_are_bounded_and_free_again_once_closed(monkeypatch):
    monkeypatch.setattr(doorman, "_CONNECTIONS_MAX", 2)
    async with shown() as where:
        held = [await asyncio.open_connection(*where) for _ in range(2)]
        assert await closed(*await asyncio.open_connection(*where)) == b""
        for _, writer in held:
            writer.close()
            await writer.wait_closed()
        async with asyncio.timeout(5):
            answer = b""
            while not answer:  # the port learns of it in its own time
                reader, writer = await asyncio.open_connection(*where)
                writer.write(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n")
                answer = await closed(reader, writer)
        assert answer.startswith(b"HTTP/1.1 200 ")


async def test_much_goes_through_the_relay_and_each_side_holds_back_while_the_other_is_slow():
    async def echo(reader, writer):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    inner = await asyncio.start_server(echo, "127.0.0.1", 0)
    door = doorman.Doorman(asyncio.Protocol, inner.sockets[0].getsockname()[1])
    outer = await asyncio.get_running_loop().create_server(door, "127.0.0.1", 0)
    async with inner, outer:
        reader, writer = await asyncio.open_connection(*outer.sockets[0].getsockname())
        sent = doorman._PREFACE + b"x" * 40_000_000  # more than the kernel's buffers take on the way
        writer.write(sent)
        await eventually(lambda: any(visitor._chosen and visitor._chosen._inner for visitor in door._visitors))
        (visitor,) = door._visitors
        await eventually(lambda: not visitor._chosen._inner.is_reading() and not visitor._transport.is_reading())
        async with asyncio.timeout(20):
            assert await reader.readexactly(len(sent)) == sent
        writer.close()
        await writer.wait_closed()
        await eventually(lambda: not door._visitors)


async def test_relay_without_its_server_closes():
    gone = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = gone.sockets[0].getsockname()[1]
    gone.close()
    await gone.wait_closed()
    door = doorman.Doorman(asyncio.Protocol, port)
    async with await asyncio.get_running_loop().create_server(door, "127.0.0.1", 0) as outer:
        reader, writer = await asyncio.open_connection(*outer.sockets[0].getsockname())
        writer.write(doorman._PREFACE)
        assert await closed(reader, writer) == b""


async def test_taken_port_is_a_fault_of_the_settings():
    async with shown() as (host, port):
        with pytest.raises(SettingsError, match=r"admin_listen: expected an address that can be bound, found"):
            async with shown(admin_listen=f"{host}:{port}"):
                pass


async def test_empty_address_is_no_admin_port():
    loaded = Loaded(settings=Settings(admin_listen=""), origins={})
    async with admin(loaded, Metrics("1"), Failures(), lambda: True, address="") as address:
        assert address == ""


# In a browser


def ten_minutes(evil: str, seed: int = 3) -> tuple[Metrics, Failures, _History]:
    """Give ten minutes of calls, as if they had been."""
    chance = random.Random(seed)
    metrics, failures = Metrics(__version__, connections=lambda: 24), Failures()
    history = _History(metrics)
    history.began_at -= 93_780
    now, in_flight = time.monotonic(), 0
    for step in range(241):
        calls = max(0, round(chance.gauss(24 + 9 * (step % 80) / 80, 5)))
        trouble = 0.22 if 150 < step < 172 else 0.012
        flying = max(1, round(0.8 * in_flight + 0.2 * chance.gauss(18, 9) + (4 if trouble > 0.1 else 0)))
        for _ in range(flying - in_flight):
            metrics.start("StreamChatCompletion")
        for _ in range(calls):
            fields = (
                dict(*chance.choices(FAILURES, weights=(9, 6, 5, 3, 4, 6, 1, 2))) if chance.random() < trouble else {}
            )
            streamed = chance.random() < 0.8
            first_s = chance.lognormvariate(-1.6, 0.55)
            took_s = first_s + chance.lognormvariate(0.1, 0.7)
            fields = {
                "duration_s": took_s,
                "upstream_s": took_s,
                "first_chunk_s": first_s,
                "method": "StreamChatCompletion" if streamed else "CreateChatCompletion",
            } | fields
            fields |= {} if fields["method"] == "StreamChatCompletion" else {"first_chunk_s": None}
            fields = {name: evil if value == EVIL else value for name, value in fields.items()}
            if fields.get("request_id") != EVIL:
                fields["request_id"] = str(uuid.UUID(int=chance.getrandbits(128), version=4))
            metrics.start(fields["method"])
            metrics.end(record(**fields))
            failures.end(record(**fields))
        for _ in range(in_flight - flying):
            metrics.end(record(duration_s=1.1))
        in_flight = flying
        history._looks.append((now + 2.5 * (step - 240), metrics.totals()))
    spaced = [failure.__class__(**vars(failure) | {"at": time.time() - 11.3 * ago}) for ago, failure in
              enumerate(reversed(failures._last))]  # fmt: skip
    failures._last.clear()
    failures._last.extend(reversed(spaced))
    return metrics, failures, history


@contextlib.asynccontextmanager
async def _told(history: _History):
    yield history


async def browse(url: str, *options: str, size: str = "1200,1500") -> str:
    """Open a page in Chromium and give what it printed, once its script has run for three seconds."""
    with tempfile.TemporaryDirectory() as profile:
        process = await asyncio.create_subprocess_exec(
            *(CHROMIUM, *HEADLESS, f"--user-data-dir={profile}", f"--window-size={size}"),
            *("--virtual-time-budget=3000", *options, url),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(50):
                out, _ = await process.communicate()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        return out.decode()


@contextlib.asynccontextmanager
async def _busy_page(monkeypatch: pytest.MonkeyPatch, evil: str = EVIL, failures_shown: int = 50):
    metrics, failures, history = ten_minutes(evil)
    while len(failures._last) > failures_shown:
        failures._last.popleft()
    monkeypatch.setattr(admin_module, "_history", lambda _metrics: _told(history))
    environ = {
        "OLLM_BRIDGE_ADMIN_LISTEN": "127.0.0.1:0",
        "OLLM_BRIDGE_UPSTREAM__BASE_URL": "https://api.gateway.orgn.com",
        "OLLM_BRIDGE_UPSTREAM__API_KEY": KEY,
        "OLLM_BRIDGE_LOG__FORMAT": "json",
    }
    async with shown(metrics, failures, loaded=load(flags={"calls_max": 500}, environ=environ)) as (host, port):
        yield f"http://{host}:{port}/"


@pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)
async def test_page_in_a_browser_shows_it_all_and_runs_nothing_of_the_callers(monkeypatch, tmp_path):
    async with _busy_page(monkeypatch) as url:
        document = await browse(url, "--dump-dom")
        picture = tmp_path / "page.png"
        await browse(url, f"--screenshot={picture}")
    assert "<title>ollm-bridge</title>" in document
    assert ">SERVING</span>" in document
    assert f"version {__version__}" in document
    assert "&lt;script&gt;document.title" in document
    assert "<img" not in document
    assert document.count("<svg") == 4
    for text in ("INCOMPLETE_STREAM", "UPSTREAM_UNREACHABLE", "UNAVAILABLE", "set, not shown", "of at most 500"):
        assert text in document
    assert KEY not in document
    assert "NaN" not in document
    assert "undefined" not in document
    assert picture.stat().st_size > 20_000


@pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)
async def test_page_of_a_bridge_that_has_had_no_call_and_serves_none(monkeypatch):
    async with shown(serving=lambda: False) as (host, port):
        document = await browse(f"http://{host}:{port}/", "--dump-dom")
    for text in ("NOT SERVING", "No calls in the last", "None since the start", "All are the defaults"):
        assert text in document
    assert "NaN" not in document
    assert ">NO ANSWER<" not in document


async def take_picture(path: str, *options: str) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        async with _busy_page(monkeypatch, "mistral-smal", 7) as url:
            await browse(url, f"--screenshot={path}", *options, size="1120,1500")


if __name__ == "__main__":
    asyncio.run(take_picture(*sys.argv[1:]))
