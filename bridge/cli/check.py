"""`check`: the pre-flight. Whether `serve` would start with these settings, and whether the gateway takes its calls.

The gateway is asked by an empty request, which costs nothing: it refuses it with an error in its own form, before it
names a model. The request goes the way that calls go, with the bridge's own client and key.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

from bridge.cli.interrupts import run_interruptibly
from bridge.cli.options import load_settings, settings_errors_as_usage
from bridge.core.errors import BridgeError
from bridge.core.terminal import escape_controls
from bridge.process.preflight import Findings, find_faults
from bridge.server.server import make_header_policy
from bridge.settings import Settings
from bridge.settings.describe import Shown
from bridge.upstream.call import UpstreamCall
from bridge.upstream.client import Upstream

__all__ = ["run"]

_OK: Final = 0
_NO_GATEWAY: Final = 1
_FAULTS: Final = 2
_KEY_REJECTED: Final = 3
_GATEWAY_FAILS: Final = 4
_NO_SUCH_ROUTE: Final = frozenset({404, 405, 410})  # before a model is named, these can only mean the path
_KEY_STATUSES: Final = frozenset({401, 402, 403})
_DAY_S: Final = 86400


def run(options: argparse.Namespace) -> int:
    """Print what is set and every finding, and return the exit code. Raises UsageError if nothing can be read."""
    with settings_errors_as_usage():
        loaded = load_settings(options)
    for line in _list_settings(loaded.describe(), show_all=options.all):
        print(escape_controls(line))
    findings = run_interruptibly(find_faults(loaded, bind=options.bind))
    for line in _list_findings(findings, bind=options.bind):
        print(escape_controls(line))
    if findings.faults:
        return _FAULTS
    verdict = run_interruptibly(_ask_gateway(loaded.settings))
    print(escape_controls(verdict.text))
    return verdict.code


def _list_settings(settings: Sequence[Shown], *, show_all: bool) -> Iterator[str]:
    shown = [each for each in settings if show_all or each.origin != "default"]
    width = max((len(each.name) for each in shown), default=0)
    for name, value, origin in shown:
        yield f"{name:<{width}} = {value}  ({origin})"
    if not show_all:
        yield f"{len(settings) - len(shown)} {'more ' if shown else ''}settings have their defaults (--all shows them)"


def _list_findings(findings: Findings, *, bind: bool) -> Iterator[str]:
    now = time.time()
    for name, end in findings.expiries.items():
        date, days = f"{datetime.fromtimestamp(end, UTC):%Y-%m-%d}", (end - now) / _DAY_S
        yield f"{name}: good until {date}, for {days:.0f} days" if days > 0 else f"{name}: has expired, on {date}"
    yield from (f"warning: {text}" for text in findings.warnings)
    yield from (f"error: {text}" for text in findings.faults)
    if not findings.faults:
        yield "ok: `serve` can start" + (" at its ports" if bind else "; its ports were not tried (--bind tries them)")


class _Verdict(NamedTuple):
    code: int
    text: str


async def _ask_gateway(settings: Settings) -> _Verdict:
    """Judge what the gateway answers to an empty request."""
    started_at = time.monotonic()
    http_status, failure = await _probe(settings)
    answers = f"the gateway at {settings.upstream.base_url} answers in {(time.monotonic() - started_at) * 1000:.0f} ms"
    wrong = f"error: upstream.base_url: {settings.upstream.base_url}"
    if failure is None:
        return _Verdict(_NO_GATEWAY, f"{wrong} accepts an empty request, so it is not a gateway of this API")
    if http_status is None:
        return _Verdict(_NO_GATEWAY, f"{wrong} does not answer: {failure}")
    its_words = f"HTTP {http_status}: {failure.message}"
    if http_status in _KEY_STATUSES:
        return _judge_key(settings, answers, its_words)
    if http_status in {408, 425, 429}:
        return _Verdict(_GATEWAY_FAILS, f"error: {answers}, but it limits the bridge's calls ({its_words})")
    if http_status >= 500:
        return _Verdict(_GATEWAY_FAILS, f"error: {answers}, but it fails ({its_words})")
    has_envelope = failure.upstream is not None and failure.upstream.HasField("message")
    if not has_envelope or http_status in _NO_SUCH_ROUTE:
        return _Verdict(_NO_GATEWAY, f"{wrong} is not a gateway of this API: is the URL right? ({its_words})")
    return _Verdict(_OK, f"ok: {answers}, and refuses an empty request as it should ({its_words})")


def _judge_key(settings: Settings, answers: str, its_words: str) -> _Verdict:
    upstream = settings.upstream
    for name in ("api_key_file", "api_key"):
        if getattr(upstream, name) is not None:
            return _Verdict(_KEY_REJECTED, f"error: upstream.{name}: {answers}, but rejects the key ({its_words})")
    return _Verdict(_OK, f"ok: {answers}, and wants the key that callers send ({its_words})")


async def _probe(settings: Settings) -> tuple[int | None, BridgeError | None]:
    """Send an empty request, and return the HTTP status, if there is one, and the failure."""
    policy = make_header_policy(settings)
    call = UpstreamCall(headers=policy.request_headers((), request_id="check"))
    async with Upstream(settings.upstream, policy, connections_max=1) as upstream:
        try:
            await upstream.complete(b"{}", call)
        except BridgeError as error:
            return call.http_status, error
    return call.http_status, None
