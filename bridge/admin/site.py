"""The admin port, for people and for what watches over the bridge: a page, metrics, health. Nothing here takes calls.

`/` is a page for a browser, and for those that prefer JSON what the page fetches every two seconds, `/status.json`;
`/metrics` is for Prometheus, `/healthz` for probes: 200 or 503. It shows no content and no key, has no TLS and no
authentication: it belongs on the loopback or on a network of one's own. Requests by a host name other than `localhost`
are refused, or a web site could read all this through a visitor's browser by DNS rebinding.

How HTTP is spoken is in bridge/http_server, and its bounds in connection.py: both are imported when the port is on.
"""

import asyncio
import base64
import contextlib
import hashlib
import ipaddress
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict
from importlib import resources
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar, cast

import structlog

from bridge import __version__
from bridge.admin.history import History, keep_history
from bridge.core.reasons import find_party, find_reason, list_reasons
from bridge.settings import Loaded, SettingsError, split_address
from bridge.tcp import listen_tcp
from bridge.telemetry.caller_counts import CallerCounts
from bridge.telemetry.failures import Failure, Failures
from bridge.telemetry.metrics import CONTENT_TYPE, Metrics

if TYPE_CHECKING:
    from bridge.http_server.shell import Message

__all__ = ["Shown", "Site", "is_local_host", "serve_admin"]

_T = TypeVar("_T")
_LOG: Final = structlog.get_logger("ollm_bridge")
_PAGE: Final = resources.files("bridge.admin").joinpath("page.html").read_text(encoding="utf-8")


class Shown(NamedTuple):
    """What the page shows beside the metrics. `is_serving` says whether calls are taken."""

    failures: Failures
    callers: CallerCounts
    is_serving: Callable[[], bool]


@contextlib.asynccontextmanager
async def serve_admin(loaded: Loaded, metrics: Metrics, shown: Shown, *, address: str) -> AsyncIterator[str]:
    """Serve the admin port while the block lasts, and yield its address; "" if the settings turn it off.

    `address` is where calls are taken. Raises SettingsError if the port can't be bound.
    """
    listen = loaded.settings.admin_listen
    if not listen:
        yield ""
        return
    from bridge.admin.connection import Limits, make_connection_class  # noqa: PLC0415 - an import of 0.1 s
    from bridge.http_server.shell import serve_http  # noqa: PLC0415 - as above

    host, port = split_address(listen)
    try:
        sockets = listen_tcp(host, port)
    except OSError as error:
        raise SettingsError(f"admin_listen: cannot listen at {listen!r}: {error.strerror}") from None
    bound = f"{host}:{sockets[0].getsockname()[1]}"
    async with contextlib.AsyncExitStack() as stack:
        for each in sockets:
            stack.enter_context(each)
        history = await stack.enter_async_context(keep_history(metrics))
        site = Site(loaded, metrics, shown, history, address=address)
        await stack.enter_async_context(serve_http(site, sockets, make_connection_class(Limits())))
        yield bound


class _Answer(NamedTuple):
    body: str | bytes
    content_type: str = "text/plain; charset=utf-8"
    status: int = 200


class Site:
    """The pages, as an ASGI application."""

    def __init__(self, loaded: Loaded, metrics: Metrics, shown: Shown, history: History, *, address: str) -> None:
        self._metrics = metrics
        self._shown = shown
        self._history = history
        self._constants = {
            "version": __version__,
            "address": address,
            "upstream": loaded.settings.upstream.base_url,
            "settings": [setting._asdict() for setting in loaded.describe()],
        }
        self._pages: Mapping[str, Callable[[], Awaitable[_Answer]]] = {
            "/": self._show_page,
            "/metrics": self._show_metrics,
            "/healthz": self._show_health,
            "/status.json": self._show_status,
        }
        self._running: dict[Callable[[], Any], asyncio.Task[Any]] = {}

    async def __call__(
        self,
        scope: "Message",
        receive: Callable[[], Awaitable["Message"]],  # noqa: ARG002 - no request has a body
        send: Callable[["Message"], Awaitable[None]],
    ) -> None:
        """Answer one request."""
        answer = await self._answer(scope)
        body = answer.body.encode() if isinstance(answer.body, str) else answer.body
        headers = [("content-type", answer.content_type), ("content-length", str(len(body))), *_HEADERS.items()]
        encoded = [(name.encode(), value.encode()) for name, value in headers]
        await send({"type": "http.response.start", "status": answer.status, "headers": encoded})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: "Message") -> _Answer:
        if not _is_host_allowed(scope["headers"]):
            return _Answer(_WRONG_HOST, status=421)
        show = self._pages.get(_find_path(scope))
        if show is None:
            return _Answer(f"not found; the pages are {', '.join(self._pages)}\n", status=404)
        if scope["method"] not in {"GET", "HEAD"}:
            return _Answer("only GET and HEAD are allowed\n", status=405)
        try:
            return await show()
        except Exception as error:  # noqa: BLE001 - a page that fails fails alone
            _LOG.warning("admin page failed", path=scope["path"], fault=type(error).__name__)
            return _Answer("the bridge could not make this page; its log has more\n", status=500)

    async def _show_page(self) -> _Answer:
        return _Answer(_PAGE, "text/html; charset=utf-8")

    async def _show_metrics(self) -> _Answer:
        return _Answer(await self._share(self._metrics.page), CONTENT_TYPE)

    async def _show_health(self) -> _Answer:
        return _Answer("SERVING\n") if self._shown.is_serving() else _Answer("NOT_SERVING\n", status=503)

    async def _show_status(self) -> _Answer:
        failures = await self._share(self._shown.failures.last)
        callers = await self._share(self._shown.callers.read)
        status: dict[str, Any] = {
            **self._constants,
            "now": time.time(),
            "serving": self._shown.is_serving(),
            **self._history.summarize(),
            "failures": [_describe_failure(failure) for failure in failures],
            "reason_parties": _PARTIES,
            "callers": [{"name": name, **count._asdict()} for name, count in callers.items()],
        }
        return _Answer(json.dumps(status), "application/json")

    async def _share(self, work: Callable[[], _T]) -> _T:
        """Do work in a thread, once for all requests that come meanwhile: resolving DNS names needs threads too."""
        task = self._running.get(work)
        if task is None:
            task = self._running[work] = asyncio.create_task(asyncio.to_thread(work))
            task.add_done_callback(lambda _: self._running.pop(work))
        return cast("_T", await asyncio.shield(task))


_PARTIES: Final = {name: find_party(name) for name in list_reasons()}
"""Who has to act, by reason. Failures that have a code alone are the caller's: it has ended the call."""


def _describe_failure(failure: Failure) -> dict[str, Any]:
    """Return a failure with who has to act on it, and what they can do."""
    row = find_reason(failure.reason)
    return {**asdict(failure), "party": find_party(failure.reason), "advice": row.advice if row else ""}


_WRONG_HOST: Final = (
    "use an IP address or localhost to reach this port: other host names are refused, or a web site could read it "
    "through your browser (DNS rebinding)\n"
)
_HOST: Final = re.compile(r"(?P<name>[^:\[\]]+|\[(?P<ipv6>[^\[\]]+)\])(:[0-9]*)?")


def _is_host_allowed(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether each Host header is allowed. Some probes send none; browsers always do."""
    return all(is_local_host(value.decode("latin-1")) for name, value in headers if name == b"host")


def is_local_host(host: str) -> bool:
    """Whether a Host header names `localhost` or an IP address, with or without a port."""
    match = _HOST.fullmatch(host)
    if match is None:
        return False
    try:
        if match["ipv6"] is not None:
            ipaddress.IPv6Address(match["ipv6"])
        else:
            ipaddress.IPv4Address(match["name"])
    except ValueError:
        return match["name"].lower() == "localhost"
    return True


def _find_path(scope: "Message") -> str:
    """Return the path of the page to show: that of the status if `/` is asked for as JSON rather than as HTML."""
    path: str = scope["path"]
    if path == "/" and _prefers_json(b",".join(value for name, value in scope["headers"] if name == b"accept")):
        return "/status.json"
    return path


def _prefers_json(accept: bytes) -> bool:
    """Whether an Accept header names JSON with a higher quality than HTML. Wildcards mean HTML."""
    qualities: dict[str, float] = {}
    for part in accept.decode("latin-1").lower().split(","):
        kind, *parameters = (each.strip() for each in part.split(";"))
        quality = next((each[2:] for each in parameters if each.startswith("q=")), "1")
        qualities[kind] = float(quality) if _QUALITY.fullmatch(quality) else 0.0
    return qualities.get("application/json", 0.0) > qualities.get("text/html", 0.0)


_QUALITY: Final = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")


def _list_hashes(tag: str) -> str:
    texts = re.findall(rf"<{tag}>(.*?)</{tag}>", _PAGE, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts)
    return " ".join(f"'sha256-{digest}'" for digest in digests)


_HEADERS: Final = {
    "content-security-policy": (
        f"default-src 'none'; script-src {_list_hashes('script')}; style-src {_list_hashes('style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
    "server": "ollm-bridge",
    "connection": "close",
    "allow": "GET, HEAD",
    "vary": "accept",
}
