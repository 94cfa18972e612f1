"""Whether `serve` would start: it is built here as far as that goes without taking its ports, and torn down again.

First each part alone, so that every fault is found and not only the first; then all together as `serve` makes them, at
free ports of the same hosts, or at the very ports if they are to be bound. So whatever makes `serve` refuse its
settings is found here, without a second list of what could be wrong.
"""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import structlog

from bridge import __version__
from bridge.admin.site import Shown, serve_admin
from bridge.core.headers import HeaderPolicy
from bridge.process.compose import compose, sharing_error
from bridge.process.hardening import find_files_max, warn_of_files_limit
from bridge.process.ports import count_workers, hold_ports
from bridge.reload import list_files
from bridge.server.callers import Callers
from bridge.server.listeners import prepare
from bridge.server.server import PRODUCT, make_header_policy
from bridge.server.web import bind_web, prepare_web
from bridge.settings import UNIX, Loaded, Settings, SettingsError, split_address
from bridge.telemetry.logs import Log, open_log
from bridge.telemetry.tracing import start_tracing
from bridge.upstream.client import Upstream

__all__ = ["Findings", "find_faults"]

_LISTEN: Final = "listen"
_SNAPSHOT_BYTES: Final = 64 * 1024
"""What a worker may write for its supervisor at least."""


class Findings(NamedTuple):
    """What is wrong, each with its setting. With `faults`, `serve` ends with 2; `expiries` are of certificates."""

    faults: list[str]
    warnings: list[str]
    expiries: dict[str, float]


async def find_faults(loaded: Loaded, *, bind: bool) -> Findings:
    """Build what `serve` builds, and return what it would say. `bind`: at its own ports, which must be free."""
    settings = loaded.settings
    warnings: dict[str, None] = {}
    faults: list[str] = []
    expiries: dict[str, float] = {}
    with _open_nothing() as nowhere, open_log(settings.log, fd=nowhere) as log, _collect_warnings(warnings):
        warn_of_files_limit(settings, find_files_max())
        for build in _PARTS:
            try:
                await build(settings)
            except SettingsError as error:
                faults.append(str(error))
        if not faults:
            try:
                async with _build_all(loaded, log, bind=bind):
                    for file in list_files():
                        expiries.update({name: each.end for name, each in file.validities.items()})
            except SettingsError as error:
                faults.append(str(error))
    return Findings(faults, list(warnings), expiries)


async def _build_tracing(settings: Settings) -> None:
    async with start_tracing(settings, __version__):
        pass


async def _build_policy(settings: Settings) -> None:
    make_header_policy(settings)


async def _build_callers(settings: Settings) -> None:
    Callers(settings)


async def _build_upstream(settings: Settings) -> None:
    async with Upstream(settings.upstream, HeaderPolicy(product=PRODUCT), connections_max=1):
        pass


async def _build_listener(settings: Settings) -> None:
    prepare(settings)


async def _build_web_listener(settings: Settings) -> None:
    if settings.web_listen:
        with prepare_web(settings):
            pass


_PARTS: Final[tuple[Callable[[Settings], Awaitable[None]], ...]] = (
    _build_policy,
    _build_callers,
    _build_upstream,
    _build_listener,
    _build_web_listener,
    _build_tracing,
)


@contextlib.asynccontextmanager
async def _build_all(loaded: Loaded, log: Log, *, bind: bool) -> AsyncIterator[None]:
    """Make a whole process, which takes no calls, and with workers what they share."""
    settings = loaded.settings if bind else _choose_free_ports(loaded.settings)
    count = count_workers(settings)
    with contextlib.ExitStack() as stack:
        if count > 1:
            settings = stack.enter_context(hold_ports(settings))
            _write_snapshots(count)
        async with (
            compose(settings, log, reuse_port=count > 1) as parts,
            serve_admin(
                dataclasses.replace(loaded, settings=settings),
                parts.metrics,
                Shown(parts.failures, parts.callers, lambda: False),
                address=parts.server.address,
            ),
        ):
            stack.enter_context(bind_web(settings, reuse_port=count > 1))
            yield


def _choose_free_ports(settings: Settings) -> Settings:
    """Return the settings with other ports of the same hosts, or other sockets in the same folders."""
    changed: dict[str, Any] = {}
    for name in type(settings).model_fields:
        if name.endswith(_LISTEN) and (address := getattr(settings, name)):
            if address.startswith(UNIX):
                changed[name] = f"{UNIX}{Path(address.removeprefix(UNIX)).parent / str(os.getpid())}"
            else:
                changed[name] = f"{split_address(address)[0]}:0"
    return settings.model_copy(update=changed)


def _write_snapshots(count: int) -> None:
    """Raise SettingsError if workers could not write what they count."""
    with tempfile.TemporaryDirectory(prefix="ollm-bridge-") as shared:
        try:
            for number in range(count):
                (Path(shared) / str(number)).write_bytes(bytes(_SNAPSHOT_BYTES))
        except OSError as error:
            raise sharing_error(shared, error) from None


@contextlib.contextmanager
def _open_nothing() -> Iterator[int]:
    descriptor = os.open(os.devnull, os.O_WRONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _collect_warnings(found: dict[str, None]) -> Iterator[None]:
    """Collect what would be warned of in the log, each text once."""

    def collect(_logger: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        if method in {"warning", "error"}:
            text = event.pop("event")
            found[": ".join([str(text), ", ".join(f"{name} = {value}" for name, value in event.items())])] = None
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[collect], cache_logger_on_first_use=False)
    try:
        yield
    finally:
        structlog.configure(**before)
