"""The log: structlog, on standard error, one line a call, as JSON or for a terminal."""

import contextlib
import json
import logging
import sys
import traceback
from typing import Any, Final

import orjson
import structlog

from bridge.settings import LogSettings
from bridge.telemetry import CallRecord, Observer

__all__ = ["CallLog", "configure"]

_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_UNSAID: Final = frozenset({"streamed", "fault"})  # the method says the former
_TIMES: Final = frozenset(name for name in CallRecord._fields if name.endswith("_s"))
_WORSE: Final = frozenset({"INTERNAL", "UNKNOWN", "DATA_LOSS", "UNIMPLEMENTED"})


def configure(settings: LogSettings) -> None:
    """Set the process's logging up: structlog's own, and the standard library's through the same renderer."""
    console = settings.format == "console" or (settings.format == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: Any = structlog.processors.JSONRenderer(_json)
    if console:  # where rich is installed, the default shows local variables, keys among them
        renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[settings.level]),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
            foreign_pre_chain=shared,
        )
    )
    handler.addFilter(_fit_to_log)
    logging.basicConfig(level=max(_LEVELS[settings.level], logging.WARNING), handlers=[handler], force=True)


def _json(event: Any, **options: Any) -> str:
    """Give the JSON text, all ASCII: a caller's U+2028 is a line's end to some readers."""
    with contextlib.suppress(TypeError):  # a lone surrogate, a key that is no text
        line = orjson.dumps(event, **options)
        if line.isascii():
            return line.decode()
    return json.dumps(event, **options)


_GRPCS_OWN: Final = frozenset({"ExecuteBatchError", "UnicodeDecodeError"})


def _fit_to_log(record: logging.LogRecord) -> bool:
    """Drop what grpc's core logs, with a stack, of what callers may do at will.

    One who leaves while a write to it waits has cancelled; and bytes that are no text are quoted whole, though they may
    be a key. The call has its own line.
    """
    kind = record.exc_info[0] if record.exc_info else None
    return not (record.name.startswith("grpc._cython") and kind is not None and kind.__name__ in _GRPCS_OWN)


class CallLog(Observer):
    """An Observer that writes a line a call."""

    def __init__(self) -> None:
        self._log = structlog.get_logger("ollm_bridge")

    def ended(self, record: CallRecord) -> None:
        """Write the call's line; a fault of the bridge with where it arose."""
        fields = {
            name: round(value, 6) if name in _TIMES else value
            for name, value in record._asdict().items()
            if value is not None and value != "" and name not in _UNSAID
        }
        if record.fault is not None:
            fields["fault"] = type(record.fault).__name__
            fields["stack"] = "".join(traceback.format_tb(record.fault.__traceback__))
        write = self._log.warning if record.code in _WORSE else self._log.info
        write("call", **fields)
