"""TLS towards the gateway: whom the bridge trusts, and the certificate that it shows, renewed while it runs."""

import ssl
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import structlog

from bridge.settings import SettingsError, UpstreamSettings

__all__ = ["TlsContext"]

_LOG: Final = structlog.get_logger("ollm_bridge")
_NAMES: Final = "upstream.client_cert_file, upstream.client_key_file"


class TlsContext:
    """The context of new connections. Raises SettingsError from `__init__`, and from nothing after it.

    The files are looked at each `check_s` at most. A pair that can't be used, such as one of which half has been
    renewed, leaves the last good one in use.
    """

    def __init__(self, settings: UpstreamSettings, *, check_s: float = 1.0) -> None:
        self._settings = settings
        self._check_s = check_s
        self._files = [path for path in (settings.client_cert_file, settings.client_key_file) if path is not None]
        self._checked_at = time.monotonic()
        self._state = _state(self._files)
        self._context = _load(settings)

    def current(self) -> ssl.SSLContext:
        """Return the context with the certificate as it is now, or was at most `check_s` ago."""
        now = time.monotonic()
        if self._files and now - self._checked_at >= self._check_s:
            self._checked_at = now
            self._reload()
        return self._context

    def _reload(self) -> None:
        state = _state(self._files)
        if state == self._state:
            return
        self._state = state
        try:
            self._context = _load(self._settings)
        except SettingsError as error:
            _LOG.warning("client certificate not reloaded", error=str(error))
        else:
            _LOG.info("client certificate reloaded")


def _state(files: Sequence[Path]) -> list[tuple[int, int, int] | None]:
    return [_state_of(path) for path in files]


def _state_of(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()  # follows links: a Kubernetes secret is renewed by turning one
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _load(settings: UpstreamSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
    except (ssl.SSLError, OSError) as error:
        raise SettingsError(f"upstream.ca_file: expected certificates in PEM, found: {error}") from None
    context.set_alpn_protocols(["http/1.1"])
    if settings.client_cert_file is not None:
        try:
            context.load_cert_chain(settings.client_cert_file, settings.client_key_file, password=_refuse_password)
        except (ssl.SSLError, OSError, ValueError) as error:
            raise SettingsError(f"{_NAMES}: expected a certificate and its key, found: {error}") from None
    return context


def _refuse_password() -> str:
    raise ValueError("a key that asks for a password")
