"""TLS towards the gateway: the authorities that the bridge trusts, and the certificate that it presents, reloaded."""

import ssl
from typing import Final

from bridge.reload import CertificateKind, Reloaded
from bridge.settings import SettingsError, UpstreamSettings

__all__ = ["TlsContext"]

_NAMES: Final = "upstream.client_cert_file, upstream.client_key_file"
_KINDS: Final[dict[str, CertificateKind]] = {
    "upstream.ca_file": "authorities",
    "upstream.client_cert_file": "chain",
}


class TlsContext:
    """The context of new connections, by the last good files. Raises SettingsError from `__init__` alone."""

    def __init__(self, settings: UpstreamSettings, *, check_interval_s: float = 1.0) -> None:
        files = {
            f"upstream.{name}": path
            for name in ("ca_file", "client_cert_file", "client_key_file")
            if (path := getattr(settings, name)) is not None
        }
        self._context: Reloaded[ssl.SSLContext] | ssl.SSLContext
        if files:
            self._context = Reloaded(
                files,
                lambda *_contents: _load(settings),
                secret={"upstream.client_key_file"},
                certificates=_KINDS,
                check_interval_s=check_interval_s,
            )
        else:
            self._context = _load(settings)

    def current(self) -> ssl.SSLContext:
        """Return the context with the last good files."""
        return self._context.value if isinstance(self._context, Reloaded) else self._context


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
            raise SettingsError(f"{_NAMES}: expected a certificate and its key in PEM, found: {error}") from None
    return context


def _refuse_password() -> str:
    raise ValueError("a key that asks for a password")
