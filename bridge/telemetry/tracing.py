"""Whether calls are traced: off unless an endpoint is set. Only then is OpenTelemetry imported, an optional extra."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from bridge.settings import Settings, SettingsError

if TYPE_CHECKING:
    from bridge.telemetry.spans import Tracer

__all__ = ["tracing"]

_LAST_SPANS_S: Final = 5.0
"""How long spans that have not been sent may take at the end, where nobody may be there to take them."""


@contextlib.asynccontextmanager
async def tracing(settings: Settings, version: str) -> AsyncIterator["Tracer | None"]:
    """Give what begins traces, or None where no endpoint is set; leaving the block sends what is left.

    Raises SettingsError where the extra is missing. To be entered after any fork: it starts a thread.
    """
    if settings.tracing.endpoint is None:
        yield None
        return
    try:
        from bridge.telemetry.spans import Tracer, otlp_exporter  # noqa: PLC0415 - an extra, and 40 ms
    except ImportError as error:
        message = "tracing.endpoint: expected the package's extra (ollm-bridge[tracing]), found it not installed"
        raise SettingsError(message) from error
    tracer = Tracer(otlp_exporter(settings.tracing.endpoint), settings, version)
    try:
        yield tracer
    finally:
        ending = threading.Thread(target=tracer.shutdown, name="last spans", daemon=True)
        ending.start()
        await asyncio.to_thread(ending.join, _LAST_SPANS_S)
