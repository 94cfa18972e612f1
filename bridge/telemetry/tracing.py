"""Whether calls are traced: only if `tracing.endpoint` is set. Then OpenTelemetry is imported, an optional extra."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from bridge.settings import Settings, SettingsError

if TYPE_CHECKING:
    from bridge.telemetry.spans import Tracer

__all__ = ["start_tracing"]

_EXPORT_TIMEOUT_S: Final = 5.0
"""How long one export may take, and all that remains at the end, when the collector may be gone."""


@contextlib.asynccontextmanager
async def start_tracing(
    settings: Settings, version: str, *, export_timeout_s: float = _EXPORT_TIMEOUT_S
) -> AsyncIterator["Tracer | None"]:
    """Yield what starts traces, or None if no endpoint is set; leaving the block exports the remaining spans.

    Raises SettingsError if the extra is not installed. Enter this after any fork: it starts a thread.
    """
    if settings.tracing.endpoint is None:
        yield None
        return
    try:
        from bridge.telemetry.spans import Tracer, make_otlp_exporter  # noqa: PLC0415 - an extra, and 40 ms
    except ImportError as error:
        message = "tracing.endpoint: the package's extra is not installed (pip install 'ollm-bridge[tracing]')"
        raise SettingsError(message) from error
    tracer = Tracer(make_otlp_exporter(settings.tracing.endpoint, timeout_s=export_timeout_s), settings, version)
    try:
        yield tracer
    finally:
        shutdown = threading.Thread(target=tracer.shutdown, name="export of remaining spans", daemon=True)
        shutdown.start()
        await asyncio.to_thread(shutdown.join, export_timeout_s)
