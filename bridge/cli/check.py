"""`check`: the settings with their origins, and whether the gateway answers as one should.

The probe is an empty request, which costs nothing: a gateway refuses it with an error in its own form, before it names
a model. It goes the way that calls go, with the bridge's own client.
"""

import argparse
import asyncio
from typing import Final

from bridge.cli.explain import escape_controls
from bridge.cli.options import load_settings, settings_errors_as_usage
from bridge.core.errors import BridgeError
from bridge.server.server import make_header_policy
from bridge.settings import Settings
from bridge.upstream.call import UpstreamCall
from bridge.upstream.client import Upstream

__all__ = ["run"]

_NO_SUCH_ROUTE: Final = frozenset({404, 405, 410})  # before a model is named, these can only mean the path


def run(options: argparse.Namespace) -> int:
    """Print the settings and the verdict, and return the exit code. Raises UsageError if the settings can't be used."""
    with settings_errors_as_usage():
        loaded = load_settings(options)
        for name, value, origin in loaded.describe():
            print(f"{name} = {value}  ({origin})")
        return asyncio.run(_check_upstream(loaded.settings))


async def _check_upstream(settings: Settings) -> int:
    """Print what the gateway answers to an empty request, and return the exit code."""
    http_status, failure = await _probe(settings)
    url = settings.upstream.base_url
    if failure is None:
        print(f"upstream: {url} accepts an empty request, so it is not a gateway of this API")
        return 1
    if http_status is None:
        print(f"upstream: {url} does not answer: {escape_controls(str(failure))}")
        return 1
    has_envelope = failure.upstream is not None and failure.upstream.HasField("message")
    is_gateway = has_envelope and http_status not in _NO_SUCH_ROUTE
    verdict = "as a gateway should" if is_gateway else "but not as a gateway of this API does: is the URL right?"
    print(f"upstream: {url} refuses an empty request with HTTP {http_status}, {verdict}")
    print(f"upstream: its message: {escape_controls(failure.message)}")
    return 0 if is_gateway else 1


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
