"""The status page in a browser.

`python -m tests.unit.admin.test_page docs/admin.png` takes the picture in docs/ again.
"""

import asyncio
import contextlib
import random
import sys
import tempfile
import time
import uuid
from dataclasses import replace

import pytest

from bridge import __version__
from bridge.admin.history import POLL_PERIOD_S, History
from bridge.settings import load
from bridge.telemetry.failures import FAILURES_MAX, Failure, Failures
from bridge.telemetry.metrics import Metrics
from tests.browser import CHROMIUM, HEADLESS
from tests.unit.admin.samples import (
    EVIL,
    FAILURES,
    begin_call,
    count_call,
    end_call,
    keep_failure,
    make_metrics,
    make_record,
    make_site,
    serve,
)

NO_CHROMIUM = "no Chromium found (Debian: the package chromium), so the page is not tried in a browser"
KEY = "sk-" + "k" * 24
START_S = 93_780
POLLS = 241
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)


class PastFailures(Failures):
    """Failures whose times are spread over the last minutes. `shown` is how many there are."""

    def __init__(self, shown: int) -> None:
        super().__init__()
        self.shown = shown

    def last(self) -> list[Failure]:
        now = time.time()
        failures = super().last()[: self.shown]
        return [replace(failure, at=now - 11.3 * number) for number, failure in enumerate(failures)]


async def make_ten_minutes(evil: str, seed: int, failures_shown: int) -> tuple[Metrics, Failures, History]:
    """Make ten minutes of calls, on a clock of their own."""
    chance = random.Random(seed)
    now_s = 0.0
    metrics, failures = make_metrics(connections=24), PastFailures(failures_shown)
    history = History(metrics, clock=lambda: now_s)
    now_s, in_flight = START_S - POLLS * POLL_PERIOD_S, 0
    for step in range(POLLS):
        calls = max(0, round(chance.gauss(24 + 9 * (step % 80) / 80, 5)))
        failure_share = 0.22 if 150 < step < 172 else 0.012
        busy = 4 if failure_share > 0.1 else 0
        next_in_flight = max(1, round(0.8 * in_flight + 0.2 * chance.gauss(18, 9) + busy))
        for _ in range(next_in_flight - in_flight):
            begin_call(metrics)
        for _ in range(calls):
            record = make_random_record(chance, evil, failure_share)
            count_call(metrics, record)
            keep_failure(failures, record)
        for _ in range(in_flight - next_in_flight):
            end_call(metrics, make_record(duration_s=1.1))
        in_flight = next_in_flight
        now_s += POLL_PERIOD_S
        await history.poll()
    return metrics, failures, history


def make_random_record(chance: random.Random, evil: str, failure_share: float):
    failure = {}
    if chance.random() < failure_share:
        (failure,) = chance.choices(FAILURES, weights=(9, 6, 5, 3, 4, 6, 1, 2))
    method = "StreamChatCompletion" if chance.random() < 0.8 else "CreateChatCompletion"
    streamed = failure.get("method", method) == "StreamChatCompletion"
    first_chunk_s = chance.lognormvariate(-1.6, 0.55)
    duration_s = first_chunk_s + chance.lognormvariate(0.1, 0.7)
    fields = {
        "method": method,
        "duration_s": duration_s,
        "upstream_s": duration_s,
        "first_chunk_s": first_chunk_s if streamed else None,
        "request_id": str(uuid.UUID(int=chance.getrandbits(128), version=4)),
    } | failure
    return make_record(**{name: evil if value == EVIL else value for name, value in fields.items()})


@contextlib.asynccontextmanager
async def serve_busy_page(evil: str = EVIL, seed: int = 3, failures_shown: int = FAILURES_MAX):
    metrics, failures, history = await make_ten_minutes(evil, seed, failures_shown)
    environ = {
        "OLLM_BRIDGE_ADMIN_LISTEN": "127.0.0.1:0",
        "OLLM_BRIDGE_UPSTREAM__BASE_URL": "https://api.gateway.orgn.com",
        "OLLM_BRIDGE_UPSTREAM__API_KEY": KEY,
        "OLLM_BRIDGE_LOG__FORMAT": "json",
    }
    loaded = load(flags={"calls_max": 500}, environ=environ)
    async with serve(await make_site(metrics, failures, loaded=loaded, history=history)) as (host, port):
        yield f"http://{host}:{port}/"


async def browse(url: str, *options: str, size: str = "1200,1500") -> str:
    """Open a page in Chromium and return what Chromium prints, once the page's script has run for three seconds."""
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


@needs_chromium
async def test_page_shows_everything_and_runs_nothing_that_callers_sent(tmp_path):
    async with serve_busy_page() as url:
        document = await browse(url, "--dump-dom")
        picture = tmp_path / "page.png"
        await browse(url, f"--screenshot={picture}")
    assert "<title>ollm-bridge</title>" in document
    assert ">SERVING</span>" in document
    assert f"version {__version__}" in document
    assert "up 1 d 2 h" in document
    assert "&lt;script&gt;document.title" in document
    assert "<img" not in document
    assert document.count("<svg") == 4
    for text in ("INCOMPLETE_STREAM", "UPSTREAM_UNREACHABLE", "UNAVAILABLE", "set, not shown", "of at most 500"):
        assert text in document
    assert KEY not in document
    assert "NaN" not in document
    assert "undefined" not in document
    assert picture.stat().st_size > 20_000


@needs_chromium
async def test_page_of_a_bridge_without_calls_that_takes_none():
    async with serve(await make_site(is_serving=lambda: False)) as (host, port):
        document = await browse(f"http://{host}:{port}/", "--dump-dom")
    for text in (
        "NOT SERVING",
        "No calls in the last",
        "No failures in the last",
        "No failures since the start",
        "All settings",
    ):
        assert text in document
    assert "NaN" not in document
    assert ">UNREACHABLE<" not in document


async def take_picture(path: str, *options: str) -> None:
    async with serve_busy_page("mistral-small", 7, failures_shown=7) as url:
        await browse(url, f"--screenshot={path}", *options, size="1120,1500")


if __name__ == "__main__":
    asyncio.run(take_picture(*sys.argv[1:]))
