"""The status page in a browser.

`python -m tests.unit.admin.test_page docs` takes the pictures in docs/ again: at 1280 and 390 pixels, light and dark.
"""

import asyncio
import contextlib
import random
import sys
import tempfile
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from bridge import __version__
from bridge.admin.history import POLL_PERIOD_S, History
from bridge.settings import load
from bridge.telemetry.caller_counts import CallerCounts
from bridge.telemetry.failures import FAILURES_MAX, Failure, Failures
from bridge.telemetry.metrics import Metrics
from tests.kit.chromium import CHROMIUM, HEADLESS, open_page
from tests.kit.processes import run_program_async
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
DAY_S = 86_400
CALLERS = (
    "spiffe://cluster.local/ns/search/sa/indexer",
    "spiffe://cluster.local/ns/support/sa/assistant",
    "spiffe://cluster.local/ns/reports/sa/nightly-summaries",
    "",
)
READERS = {
    "calls_max": lambda: 500,
    "processes": lambda: {("serving",): 1},
    "reloads": lambda: {("tls.cert_file",): 2, ("upstream.api_key_file",): 1, ("tokens_file",): 0},
    "reload_failures": lambda: {("tls.cert_file",): 0, ("upstream.api_key_file",): 0, ("tokens_file",): 1},
    "certificate_expiry": lambda: {
        ("tls.cert_file",): time.time() + 53 * DAY_S,
        ("tls.client_ca_file",): time.time() + 6.2 * DAY_S,
    },
    "certificate_lifetime": lambda: {("tls.cert_file",): 90 * DAY_S, ("tls.client_ca_file",): 365 * DAY_S},
}
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


async def make_ten_minutes(
    evil: str, seed: int, failures_shown: int
) -> tuple[Metrics, Failures, CallerCounts, History]:
    """Make ten minutes of calls, on a clock of their own."""
    chance = random.Random(seed)
    now_s = 0.0
    metrics, failures = make_metrics(24, **READERS), PastFailures(failures_shown)
    callers = CallerCounts()
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
            callers.end(record)
        for _ in range(in_flight - next_in_flight):
            end_call(metrics, make_record(duration_s=1.1))
        in_flight = next_in_flight
        now_s += POLL_PERIOD_S
        await history.poll()
    return metrics, failures, callers, history


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
        "caller": chance.choices(CALLERS, weights=(9, 4, 2, 1))[0],
    } | failure
    return make_record(**{name: evil if value == EVIL else value for name, value in fields.items()})


@contextlib.asynccontextmanager
async def serve_busy_page(evil: str = EVIL, seed: int = 3, failures_shown: int = FAILURES_MAX):
    metrics, failures, callers, history = await make_ten_minutes(evil, seed, failures_shown)
    environ = {
        "OLLM_BRIDGE_ADMIN_LISTEN": "127.0.0.1:0",
        "OLLM_BRIDGE_UPSTREAM__BASE_URL": "https://api.gateway.orgn.com",
        "OLLM_BRIDGE_UPSTREAM__API_KEY": KEY,
        "OLLM_BRIDGE_LOG__FORMAT": "json",
    }
    loaded = load(flags={"calls_max": 500}, environ=environ)
    site = await make_site(metrics, failures, callers, loaded=loaded, history=history)
    async with serve(site) as (host, port):
        yield f"http://{host}:{port}/"


async def browse(url: str, *options: str, size: str = "1200,1500") -> str:
    """Open a page in Chromium and return what Chromium prints, once the page's script has run for three seconds."""
    with tempfile.TemporaryDirectory() as profile:
        command = (CHROMIUM, *HEADLESS, f"--user-data-dir={profile}", f"--window-size={size}")
        return (await run_program_async(*command, "--virtual-time-budget=3000", *options, url)).out


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
    for text in (
        *("INCOMPLETE_COMPLETION", "UPSTREAM_UNREACHABLE", "UNAVAILABLE", "set, not shown", "of at most 500"),
        *("gateway: HTTP 429", "Connection refused", "spiffe://cluster.local/ns/search/sa/indexer"),
        *("the gateway's: ", "tls.client_ca_file", "in 6 d 4 h"),
    ):
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


@needs_chromium
async def test_page_says_why_it_takes_no_calls_and_since_when():
    states = {("serving",): 2}
    metrics = make_metrics(processes=lambda: states)
    now_s = 1000.0
    history = History(metrics, clock=lambda: now_s)
    await history.poll()
    states = {("serving",): 1, ("upstream_unreachable",): 1}
    now_s += 100
    await history.poll()
    now_s += 200
    async with serve(await make_site(metrics, history=history, is_serving=lambda: False)) as (host, port):
        document = await browse(f"http://{host}:{port}/", "--dump-dom")
    assert "1 of 2 processes: the gateway can't be reached (health.upstream_period_s) · since " in document
    assert "(3 min)" in document


OVERFLOW = """
[...document.querySelectorAll("main *")].filter(each => {
  const box = each.getBoundingClientRect();
  return box.width && box.right > innerWidth + 0.5 && getComputedStyle(each).overflow !== "hidden";
}).map(each => each.outerHTML.slice(0, 200))
"""
TEXT_HEIGHTS = "[...document.querySelectorAll('svg text')].map(each => each.getBoundingClientRect().height)"
OVERLAPS = """
[...document.querySelectorAll("svg")].flatMap(svg => {
  const boxes = [...svg.querySelectorAll("text")].map(each => [each.textContent, each.getBoundingClientRect()]);
  const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom - 2 && b.top < a.bottom - 2;
  return boxes.flatMap(([text, a], i) => boxes.slice(i + 1).filter(([, b]) => meet(a, b)).map(each => text + each[0]));
})
"""


@needs_chromium
@pytest.mark.parametrize("width", [360, 390, 768, 900, 1280])
async def test_page_fits_its_width_and_its_charts_can_be_read(width):
    async with serve_busy_page() as url, open_page(width=width, height=900) as page:
        await page.go(url)
        await page.wait_until("document.querySelectorAll('svg').length === 4")
        assert await page.run(OVERFLOW) == []
        assert await page.run("document.documentElement.scrollWidth") <= width
        heights = await page.run(TEXT_HEIGHTS)
        assert len(heights) > 12
        assert min(heights) >= 11
        assert await page.run(OVERLAPS) == []
        assert page.complaints == []


async def take_pictures(folder: Path) -> None:
    """Write the pictures of docs/."""
    async with serve_busy_page("mistral-small", 7, failures_shown=4) as url:
        for name, width in (("admin", 1280), ("admin-phone", 390)):
            for suffix, scheme in (("", "light"), ("-dark", "dark")):
                async with open_page(width=width, height=900) as page:
                    feature = {"name": "prefers-color-scheme", "value": scheme}
                    await page.ask("Emulation.setEmulatedMedia", features=[feature])
                    await page.go(url)
                    await page.wait_until("document.querySelectorAll('svg').length === 4")
                    (folder / f"{name}{suffix}.png").write_bytes(await page.take_picture())


if __name__ == "__main__":
    asyncio.run(take_pictures(Path(sys.argv[1])))
