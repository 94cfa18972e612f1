"""A page in headless Chromium, driven over the DevTools protocol: JSON on a WebSocket, with a number a request."""

import asyncio
import base64
import contextlib
import itertools
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from tests.kit.processes import start_program_async
from tests.kit.waiting import eventually

__all__ = ["CHROMIUM", "HEADLESS", "Page", "open_page"]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

START_S = 30
ANSWER_S = 30
HEADLESS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
)
"""Flags with which it runs without a screen and sends no requests of its own."""


class Page:
    """One page. `complaints` are uncaught exceptions and the console's errors."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.complaints: list[str] = []
        self._socket = socket
        self._numbers = itertools.count(1)
        self._pending: dict[int, asyncio.Future[Any]] = {}

    async def ask(self, method: str, **params: Any) -> Any:
        """Send a command and return its result."""
        number = next(self._numbers)
        self._pending[number] = answer = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        async with asyncio.timeout(ANSWER_S):
            return await answer

    async def listen(self) -> None:
        """Receive answers and events until the browser disconnects."""
        async for message in self._socket:
            event = message.json()
            if "id" in event:
                answer = self._pending.pop(event["id"])
                answer.set_result(event.get("result", event))
            elif event["method"] == "Runtime.exceptionThrown":
                self.complaints.append(str(event["params"]["exceptionDetails"]))
            elif event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
                self.complaints.append(event["params"]["entry"]["text"])

    async def go(self, url: str) -> None:
        """Open a URL, and wait until its scripts have run."""
        await self.ask("Page.navigate", url=url)
        await self.wait_until("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def run(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        answer = await self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def wait_until(self, expression: str) -> None:
        """Wait until an expression is true."""
        async with asyncio.timeout(ANSWER_S):
            while not await self.run(expression):  # noqa: ASYNC110 - the page announces nothing
                await asyncio.sleep(0.02)

    async def take_picture(self) -> bytes:
        """Return a picture of the whole page, as PNG."""
        shot = await self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])


@contextlib.asynccontextmanager
async def open_page(*, width: int = 820, height: int = 700, scale: float = 1) -> AsyncIterator[Page]:
    """Start Chromium with a profile of its own, and yield its one page, still empty."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = (
            *(CHROMIUM, f"--user-data-dir={profile}", f"--window-size={width},{height}", *HEADLESS),
            *("--remote-debugging-port=0", "about:blank"),
        )
        nowhere = asyncio.subprocess.DEVNULL
        async with start_program_async(*command, stdout=nowhere, stderr=nowhere):
            port_file = Path(profile) / "DevToolsActivePort"
            await eventually(lambda: port_file.exists() and port_file.read_text().count("\n"), START_S)
            port = port_file.read_text().partition("\n")[0]
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
                async with session.get("/json/list") as answer:
                    (url,) = [each["webSocketDebuggerUrl"] for each in await answer.json() if each["type"] == "page"]
                async with session.ws_connect(url, max_msg_size=0) as socket:
                    page = Page(socket)
                    listening = asyncio.create_task(page.listen())
                    for domain in ("Page", "Runtime", "Log"):
                        await page.ask(f"{domain}.enable")
                    metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
                    await page.ask("Emulation.setDeviceMetricsOverride", **metrics)
                    yield page
                await listening
