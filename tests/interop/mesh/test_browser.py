"""The page of examples/web in Chromium: Connect or gRPC-Web to a bridge, or to Envoy before it, word by word.

`python -m tests.interop.mesh.test_browser docs/web.png` takes the picture in docs/ again.
"""

import asyncio
import contextlib
import functools
import re
import sys
import tempfile
import time
import urllib.parse
from itertools import pairwise
from pathlib import Path

import pytest

from bridge.emulator import Emulator
from tests.kit.bridges import start_bridge_process
from tests.kit.chromium import open_page
from tests.kit.envoy import ENVOY, ROOT, get_connection_manager, run_envoy
from tests.kit.processes import find_free_port, run_program, start_program_async
from tests.kit.waiting import eventually

WEB = ROOT / "examples" / "web"
CLOSED_S = 10.0
# The first test builds the page, with nothing in any cache.
pytestmark = pytest.mark.timeout(300)

BUILD_S_MAX = 600

# Records the times and lengths of the growing answer.
WATCH = """
window.grown = [];
new MutationObserver(() => grown.push([performance.now(), document.getElementById("text").textContent.length]))
  .observe(document.getElementById("text"), {childList: true, characterData: true, subtree: true});
"""


@functools.cache
def build_page() -> Path:
    """Build the page by the commands of its README, and return the folder to serve."""
    commands = re.search(r"^```sh\n(.*?)^```$", (WEB / "README.md").read_text(), re.DOTALL | re.MULTILINE)[1]
    install, build, serve = commands.splitlines()
    for command in (install, build):
        code, out, err = run_program("sh", "-c", command, cwd=WEB, timeout_s=BUILD_S_MAX)
        assert code == 0, f"`{command}` ended with {code}:\n{out}\n{err}"
    assert serve.startswith("python3 -m http.server ")
    return WEB / "dist"


@contextlib.asynccontextmanager
async def serve_site():
    """Serve the page as its README says, and yield its origin."""
    command = (sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "--directory", build_page(), "0")
    async with start_program_async(*command, stderr=asyncio.subprocess.DEVNULL) as process:
        line = (await process.stdout.readline()).decode()
        port = re.search(r" port (\d+) ", line)[1]
        yield f"http://127.0.0.1:{port}"


WAYS = ("connect", "grpc-web", "envoy")
"""From the page to the bridge: by a protocol of the web port, or through Envoy."""


@pytest.fixture(params=WAYS)
def way(request):
    if request.param == "envoy" and not ENVOY.exists():
        pytest.skip("no Envoy here: `make interop WHAT=mesh` installs it")
    return request.param


@contextlib.asynccontextmanager
async def open_site(emulator, folder, *, way, model, allowed=True, **shape):
    """Open the page, with a bridge to call. Yields the page, Envoy if it is in between, and the bridge."""
    async with contextlib.AsyncExitStack() as stack:
        origin = await stack.enter_async_context(serve_site())
        listed = origin if allowed else "http://other.example"
        if way == "envoy":
            bridge = await stack.enter_async_context(start_bridge_process(emulator))
            envoy = await stack.enter_async_context(run_envoy(folder, bridge.address, edit=allow_origin(listed)))
            address, protocol = envoy.address, "grpc-web"
        else:
            address, protocol, envoy = f"127.0.0.1:{find_free_port()}", way, None
            bridge = await stack.enter_async_context(
                start_bridge_process(emulator, web_listen=address, web_allowed_origins=f'["{listed}"]')
            )
        page = await stack.enter_async_context(open_page(**shape))
        query = urllib.parse.urlencode({"address": f"http://{address}", "model": model, "protocol": protocol})
        await page.go(f"{origin}/?{query}")
        await page.run(WATCH)
        yield page, envoy, bridge


def allow_origin(origin):
    def edit(configuration):
        (host,) = get_connection_manager(configuration)["route_config"]["virtual_hosts"]
        (policy,) = host["typed_per_filter_config"].values()
        policy["allow_origin_string_match"] = [{"exact": origin}]

    return edit


def express_text(name):
    return f"document.getElementById('{name}').innerText"


async def send(page):
    await page.run("document.getElementById('send').click()")


async def wait_for_state(page, *, be):
    await page.wait_until(f"document.getElementById('answer').dataset.state === '{be}'")


async def test_words_appear_one_by_one_while_the_gateway_writes(emulator, tmp_path, way):
    async with open_site(emulator, tmp_path, way=way, model="scenario::slow?delay_s=0&chunk_delay_s=0.15") as (
        page,
        envoy,
        _,
    ):
        await send(page)
        exchange = await emulator.next_exchange()
        await page.wait_until("grown.filter(([, length]) => length > 0).length >= 3")
        assert not exchange.finished
        assert await page.run("document.getElementById('stop').disabled") is False
        picture = await page.take_picture()
        await wait_for_state(page, be="whole")
        text = await page.run(express_text("text"))
        assert text == "You said: Tell me how a word gets from a model to this page."
        assert (await page.run(express_text("status"))).startswith("Whole: stop, ")
        grown = [(at, length) for at, length in await page.run("grown") if length]
        words = len(text.split())
        lengths = [length for _, length in grown]
        assert len(grown) == words
        assert lengths == sorted(set(lengths))
        pauses_ms = [later[0] - earlier[0] for earlier, later in pairwise(grown)]
        assert sorted(pauses_ms)[words // 2] > 100  # as the gateway wrote them
        request_id = exchange.headers["x-request-id"]
        if envoy is not None:
            await eventually(lambda: [line for line in envoy.access if line["log"] == "UpstreamEnd"])
            (line,) = [line for line in envoy.access if line["log"] == "UpstreamEnd"]
            assert (line["grpc_status"], line["request_id"]) == ("OK", request_id)
        assert await page.run("document.getElementById('failure').hidden")
        assert page.complaints == []
    assert len(picture) > 10_000


async def test_stop_closes_the_gateways_connection(emulator, tmp_path, way):
    async with open_site(emulator, tmp_path, way=way, model="scenario::stall?after=3") as (page, _, _):
        await send(page)
        exchange = await emulator.next_exchange()
        await page.wait_until(f"{express_text('text')} === 'You said:'")
        await page.run("document.getElementById('stop').click()")
        stopped_at = time.monotonic()
        assert await exchange.wait_closed() - stopped_at < CLOSED_S
        assert not exchange.finished
        await wait_for_state(page, be="stopped")
        assert await page.run(express_text("status")) == "Stopped."
        assert await page.run("document.getElementById('failure').hidden")
        assert page.complaints == []


async def test_navigation_away_closes_the_gateways_connection(emulator, tmp_path, way):
    async with open_site(emulator, tmp_path, way=way, model="scenario::stall?after=3") as (page, _, _):
        await send(page)
        exchange = await emulator.next_exchange()
        await page.wait_until(f"{express_text('text')} === 'You said:'")
        await page.go("data:text/html,elsewhere")
        left_at = time.monotonic()
        assert await exchange.wait_closed() - left_at < CLOSED_S


FAILURES = {
    "before anything": (
        "scenario::rate_limited?retry_after=2",
        {
            "code": "RESOURCE_EXHAUSTED",
            "reason": "UPSTREAM_RATE_LIMITED",
            "message": "rate limit exceeded",
            "advice": "Try again in 2 s.",
        },
        "HTTP 429 rate_limit_error rate_limit_exceeded",
    ),
    "after words": (
        "scenario::error_event?after=3&message=the+provider+is+gone&status=503",
        {
            "code": "ABORTED",
            "reason": "UPSTREAM_STREAM_ERROR",
            "message": "the provider is gone",
            "advice": "It may have run and been billed: try again only if paying twice is acceptable.",
        },
        "HTTP 200 server_error",
    ),
    "of the request": (
        "scenario::error?status=400&code=context_length_exceeded&param=messages[0].content&message=too+long",
        {
            "code": "INVALID_ARGUMENT",
            "reason": "UPSTREAM_INVALID_REQUEST",
            "message": "too long",
            "advice": "Fix the request: the same one will fail again.",
        },
        "messages[0].content",
    ),
}


@pytest.mark.parametrize("kind", FAILURES)
async def test_failure_is_shown_with_its_reason_and_advice(emulator, tmp_path, way, kind):
    model, texts, detail = FAILURES[kind]
    async with open_site(emulator, tmp_path, way=way, model=model) as (page, _, _):
        await send(page)
        await wait_for_state(page, be="failed")
        assert {name: await page.run(express_text(name)) for name in texts} == texts
        details = await page.run(express_text("details"))
        assert detail in details
        assert emulator.exchanges[0].headers["x-request-id"] in details
        assert await page.run("document.getElementById('send').disabled") is False
        assert page.complaints == []


async def test_interrupted_completion_is_not_shown_as_whole(emulator, tmp_path, way):
    """A bridge that dies sends no trailers: the end of the bytes is not the end of the stream."""
    async with open_site(emulator, tmp_path, way=way, model="scenario::stall?after=3") as (page, _, bridge):
        await send(page)
        await page.wait_until(f"{express_text('text')} === 'You said:'")
        bridge.process.kill()
        await wait_for_state(page, be="failed")
        assert "not whole" in await page.run(express_text("status"))
        assert await page.run(express_text("code")) != "UNAVAILABLE"


async def test_page_of_another_origin_gets_nothing(emulator, tmp_path, way):
    async with open_site(emulator, tmp_path, way=way, model="echo", allowed=False) as (page, _, _):
        await send(page)
        await wait_for_state(page, be="failed")
        assert await page.run(express_text("reason")) == ""
        assert "may this page call it?" in await page.run(express_text("advice"))
        assert any("CORS" in complaint for complaint in page.complaints)
    assert emulator.exchanges == []


async def take_picture() -> bytes:
    async with Emulator() as emulator:
        with tempfile.TemporaryDirectory() as folder:
            model = "scenario::slow?delay_s=0&chunk_delay_s=0.3"
            shape = {"width": 820, "height": 560, "scale": 1.5}
            async with open_site(emulator, Path(folder), way="connect", model=model, **shape) as (page, _, _):
                await send(page)
                # Show the values of the documents, not the slow scenario and a test's port.
                for name, value in {"model": "near_qwen3_30b", "address": "http://127.0.0.1:8081"}.items():
                    await page.run(f"document.getElementById('{name}').value = '{value}'")
                await page.wait_until("grown.filter(([, length]) => length > 0).length >= 9")
                return await page.take_picture()


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(asyncio.run(take_picture()))
