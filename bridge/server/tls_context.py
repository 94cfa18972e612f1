"""The call ports' TLS: its files, whether they can be used, and a context of Python's that follows them.

A context is made anew when a file has changed, and chosen at each handshake, so open connections stay as they are.
"""

import contextlib
import ssl
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from bridge.reload import CertificateKind, Reloaded
from bridge.server.handshakes import Handshakes, watch_handshakes
from bridge.settings import SettingsError, TlsSettings

__all__ = ["check_files", "open_context", "reload_files"]


T = TypeVar("T")


def reload_files(tls: TlsSettings, parse: Callable[..., T]) -> Reloaded[T]:
    """Return what `parse` makes of the certificate, the key and the callers' authorities, in this order.

    Raises SettingsError.
    """
    names = ("cert_file", "key_file", "client_ca_file")
    files = {f"tls.{name}": path for name in names if (path := getattr(tls, name)) is not None}
    kinds: dict[str, CertificateKind] = {"tls.cert_file": "chain", "tls.client_ca_file": "authorities"}
    return Reloaded(files, parse, secret={"tls.key_file"}, certificates=kinds)


def check_files(tls: TlsSettings) -> None:
    """Raise SettingsError with OpenSSL's reason if the files can't be used."""
    _load(tls)


@contextlib.contextmanager
def open_context(
    tls: TlsSettings, *, alpn: Sequence[str], handshakes: Handshakes | None = None
) -> Iterator[ssl.SSLContext]:
    """Yield a server's context that follows the files while the block lasts. Raises SettingsError."""

    def parse(*_contents: bytes) -> ssl.SSLContext:
        context = _load(tls)
        context.set_alpn_protocols(alpn)
        return context

    current = reload_files(tls, parse)
    context = parse()
    watch_handshakes(context, handshakes or Handshakes(), lambda: current.value)
    try:
        yield context
    finally:
        context.sni_callback = None  # it holds its context, which holds it


def _load(tls: TlsSettings) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(str(tls.cert_file), tls.key_file, password=_refuse_password)
    except (ssl.SSLError, OSError, ValueError) as error:
        raise SettingsError(
            f"tls.cert_file, tls.key_file: expected a certificate and its key in PEM, found: {error}"
        ) from None
    if tls.client_ca_file is not None:
        try:
            context.load_verify_locations(tls.client_ca_file)
        except (ssl.SSLError, OSError) as error:
            raise SettingsError(f"tls.client_ca_file: expected certificates in PEM, found: {error}") from None
        context.verify_mode = ssl.CERT_REQUIRED
        # A session that is resumed is not verified again, though its authority may have gone by then.
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET
    return context


def _refuse_password() -> str:
    raise ValueError("a key with a password")
