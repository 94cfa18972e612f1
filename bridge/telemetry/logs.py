"""The log: one line a call and a few of the process's life, on standard error, as JSON or for a terminal.

structlog renders the events of the process's life, and logging's records by the same renderer. A call's line is
rendered here, since there are so many of them: the same fields in the same form, by one dump. All lines go through a
LogWriter, sys.stderr's included, so that a log that nobody reads holds nothing up.
"""

import contextlib
import json
import logging
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from os import O_WRONLY, devnull, dup2, isatty
from os import open as open_fd
from typing import Any, Final, TextIO, cast

import orjson
import structlog

from bridge.core.terminal import escape_controls
from bridge.settings import LogSettings
from bridge.telemetry.log_writer import QUEUE_BYTES_MAX, LogWriter, open_text_stream, wait_writable
from bridge.telemetry.record import CallRecord, Observer
from bridge.telemetry.severity import find_severity

__all__ = ["CallLog", "Log", "open_log", "render_call"]

FLUSH_S: Final = 1.0
"""How long lines that wait may take to be written at the end."""
_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_STACK_FRAMES_MAX: Final = 50
_LEVEL_NAMES: Final = {level: name for name, level in _LEVELS.items()}
_LOG: Final = structlog.get_logger("ollm_bridge")


@dataclass(frozen=True, slots=True)
class Log:
    """An open log."""

    writer: LogWriter
    console: bool
    level: int

    def dropped_lines(self) -> int:
        """Return how many lines were dropped so far."""
        return self.writer.dropped


@contextlib.contextmanager
def open_log(
    settings: LogSettings,
    is_loggable: Callable[[logging.LogRecord], bool] = lambda _record: True,
    *,
    fd: int | None = None,
    flush_s: float = FLUSH_S,
    queue_bytes_max: int = QUEUE_BYTES_MAX,
) -> Iterator[Log]:
    """Log to `fd`, or to standard error, while the block lasts: structlog, logging, sys.stderr and what takes the Log.

    `is_loggable` says which records of logging's are worth a line.

    Leaving the block writes what waits, for at most `flush_s`. If standard error can't be written then, it is replaced
    by /dev/null: else the process would not end, or with Python's exit code for such an error in place of its own.
    """
    target = _stderr_fd() if fd is None else fd
    writer = LogWriter(target, queue_bytes_max=queue_bytes_max, on_recovery=_report_dropped)
    stream = open_text_stream(writer, target)
    console = settings.format == "console" or (settings.format == "auto" and isatty(target))
    level = _LEVELS[settings.level]
    try:
        with (
            _configure_structlog(stream, level, console=console),
            _configure_logging(stream, level, is_loggable, console=console),
            contextlib.redirect_stderr(stream),
        ):
            yield Log(writer, console, level)
    finally:
        usable = writer.close(flush_s) and not writer.failing and wait_writable(target, flush_s)
        if fd is None and not usable:
            dup2(open_fd(devnull, O_WRONLY), target)


def _stderr_fd() -> int:
    """Return standard error's descriptor; one of nothing if the process was started without."""
    return open_fd(devnull, O_WRONLY) if sys.stderr is None else sys.stderr.fileno()


def _report_dropped(count: int) -> None:
    _LOG.warning("log lines were dropped", count=count)


@contextlib.contextmanager
def _configure_structlog(stream: TextIO, level: int, *, console: bool) -> Iterator[None]:
    before = structlog.get_config()
    structlog.configure(
        processors=[*_PROCESSORS, _make_renderer(console=console)],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.configure(**before)


@contextlib.contextmanager
def _configure_logging(
    stream: TextIO, level: int, is_loggable: Callable[[logging.LogRecord], bool], *, console: bool
) -> Iterator[None]:
    root = logging.getLogger()
    before, level_before = root.handlers[:], root.level
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _make_renderer(console=console)],
            foreign_pre_chain=_PROCESSORS,
        )
    )
    handler.addFilter(is_loggable)
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        root.handlers[:] = before
        root.setLevel(level_before)


_PROCESSORS: Final[list[Any]] = [
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def _make_renderer(*, console: bool) -> Callable[..., Any]:
    if not console:
        return structlog.processors.JSONRenderer(_to_json)
    # If rich is installed, the default shows local variables, keys among them.
    render = structlog.dev.ConsoleRenderer(
        columns=_list_columns(), exception_formatter=structlog.dev.plain_traceback, sort_keys=False
    )
    return lambda logger, name, event: render(logger, name, _make_safe(event))


def _list_columns() -> list[structlog.dev.Column]:
    """Return how a terminal shows a line's parts: the level and the event, and everything else dim behind them."""
    reset = structlog.dev.RESET_ALL

    def show(style: str, *, key: str | None = None, show_value: Callable[[object], str] = str) -> Any:
        return structlog.dev.KeyValueColumnFormatter(key, style, reset, value_repr=show_value)

    levels = structlog.dev.ConsoleRenderer.get_default_level_styles()
    return [
        structlog.dev.Column("timestamp", show(structlog.dev.DIM)),
        structlog.dev.Column("level", structlog.dev.LogLevelColumnFormatter(levels, reset)),
        structlog.dev.Column("event", show(structlog.dev.BRIGHT)),
        structlog.dev.Column("", show(structlog.dev.DIM, key=structlog.dev.DIM, show_value=_show_value)),
    ]


def _show_value(value: object) -> str:
    return value if isinstance(value, str) and value and " " not in value else repr(value)


def _make_safe(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return an event whose texts, some of them a caller's, can't control a terminal."""
    return {
        name: escape_controls(value, one_line=name not in _OF_MANY_LINES) if isinstance(value, str) else value
        for name, value in event.items()
    }


_OF_MANY_LINES: Final = frozenset({"exception", "stack"})


def _to_json(event: Any, **options: Any) -> str:
    return _dump_json(event, **options).decode()


def _dump_json(event: Any, **options: Any) -> bytes:
    """Return the JSON text, all ASCII: a caller's U+2028 ends a line for some readers."""
    try:
        line = orjson.dumps(event, **options)
    except TypeError:  # a lone surrogate, a key that is no text
        line = b""
    return line if line and line.isascii() else json.dumps(event, **options).encode()


class CallLog(Observer):
    """An Observer that logs a line a call."""

    def __init__(self, log: Log) -> None:
        self._put = log.writer.put
        self._level = log.level
        self._render = _ConsoleCalls() if log.console else render_call

    def end(self, record: CallRecord) -> None:
        """Log the call's line; an internal error of the bridge with the place where it arose."""
        if self._level <= find_severity(record.reason):
            self._put(self._render(record))


def render_call(record: CallRecord) -> bytes:
    """Return a call's line as JSON, its newline included."""
    event = _call_event(record)
    now = event["timestamp"] = datetime.now(UTC)
    try:
        line = orjson.dumps(event, option=_ORJSON_OPTIONS)
    except TypeError:  # a lone surrogate
        line = b""
    if line and line.isascii():
        # A copy: orjson allocates 8 KiB and returns what it does not need, a hole that no other line of its can use.
        return line[:-1] + b"\n"
    event["timestamp"] = _format_time(now)
    return _dump_json(event) + b"\n"


_ORJSON_OPTIONS: Final = orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z


class _ConsoleCalls:
    """Renders calls' lines for a terminal: what a person looks for comes first, the other fields behind it."""

    def __init__(self) -> None:
        self._renderer = _make_renderer(console=True)

    def __call__(self, record: CallRecord) -> bytes:
        event = _call_event(record)
        first = [event.pop(name, "") for name in ("code", "reason", "method", "model")]
        first.append(f"{event.pop('duration_s') * 1000:.0f} ms")
        if record.streamed:
            first.append(f"{event.pop('chunks')} chunks")
        event["event"] = " ".join(filter(None, first)) + (f": {event.pop('detail')}" if record.detail else "")
        event["timestamp"] = _format_time(datetime.now(UTC))
        line: str = self._renderer(None, "", event)
        return f"{line}\n".encode(errors="backslashreplace")


def _format_time(time: datetime) -> str:
    return time.isoformat().removesuffix("+00:00") + "Z"


def _call_event(record: CallRecord) -> dict[str, Any]:
    """Return a call's fields, less those that are empty; 0 is not empty. The timestamp is to come last."""
    fields = zip(_FIELDS, cast("tuple[Any, ...]", record), strict=False)
    event: dict[str, Any] = {name: value for name, value in fields if value or value == 0}
    for name in _TIMES:
        if name in event:
            event[name] = round(event[name], 6)
    if record.fault is not None:
        event["fault"] = type(record.fault).__name__
        event["stack"] = "".join(traceback.format_tb(record.fault.__traceback__, -_STACK_FRAMES_MAX))
    event["event"] = "call"
    event["level"] = _LEVEL_NAMES[find_severity(record.reason)]
    return event


_FIELDS: Final = tuple(name for name in CallRecord._fields if name != "fault")
_TIMES: Final = tuple(name for name in _FIELDS if name.endswith("_s"))
