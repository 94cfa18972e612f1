"""The call port: an address, with TLS or without, bound so that every fault is reported before anything is served."""

import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Final, cast

import grpc
import structlog

from bridge.reload import Reloaded
from bridge.settings import Settings, SettingsError, TlsSettings, is_loopback, split_address

__all__ = ["bind"]

_UNIX: Final = "unix:"
_LOG: Final = structlog.get_logger("ollm_bridge")


def bind(server: grpc.aio.Server, settings: Settings) -> str:
    """Bind the server to the address in the settings, and return it with its port. Raises SettingsError."""
    listen = settings.listen
    credentials = _credentials(settings.tls) if settings.tls.cert_file is not None else None
    if listen.startswith(_UNIX):
        _check_socket(listen.removeprefix(_UNIX))
    elif credentials is None and not is_loopback(split_address(listen)[0]):
        if not settings.insecure:
            expected = "a loopback address, TLS (tls.cert_file) or insecure = true"
            raise SettingsError(f"listen: expected {expected}, found {listen!r} without TLS")
        _LOG.warning("serving without TLS at an address other than loopback: insecure is true", listen=listen)
    try:
        port = server.add_secure_port(listen, credentials) if credentials else server.add_insecure_port(listen)
    except RuntimeError as error:
        reason = _find_bind_reason(listen) or error
        raise SettingsError(f"listen: expected an address that can be bound, found {listen!r}: {reason}") from None
    return listen if listen.startswith(_UNIX) else f"{listen.rpartition(':')[0]}:{port}"


def _check_socket(path: str) -> None:
    """Raise SettingsError if a socket is in use: grpc would unlink it, and cut its server off without a message."""
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
        try:
            probe.connect(path)
        except OSError:
            return
    raise SettingsError(f"listen: unix:{path} is in use by another process")


def _find_bind_reason(listen: str) -> str:
    """Return why an address can't be bound, which grpc does not say; "" if it is not found."""
    if listen.startswith(_UNIX):
        return ""
    host, port = split_address(listen)
    try:
        with socket.create_server((host.strip("[]"), port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            return ""
    except OSError as error:
        return str(error.strerror or error).partition(" (while ")[0]


def _credentials(tls: TlsSettings) -> grpc.ServerCredentials:
    """Return credentials that follow their files. grpc asks for them at each handshake, on a thread of its own."""
    files = {
        f"tls.{name}": path
        for name in ("cert_file", "key_file", "client_ca_file")
        if (path := getattr(tls, name)) is not None
    }

    def parse(*contents: bytes) -> grpc.ServerCertificateConfiguration:
        _check_files(tls)
        certificate, key, *authorities = contents
        return grpc.ssl_server_certificate_configuration([(key, certificate)], authorities[0] if authorities else None)

    configuration = Reloaded(files, parse, secret={"tls.key_file"})
    in_use = configuration.value

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal in_use
        previous, in_use = in_use, configuration.value
        return in_use if in_use is not previous else None

    return grpc.dynamic_ssl_server_credentials(
        in_use,
        cast("Callable[[], grpc.ServerCertificateConfiguration]", fetch),  # None: no change
        require_client_authentication=tls.client_ca_file is not None,
    )


def _check_files(tls: TlsSettings) -> None:
    """Raise SettingsError with OpenSSL's reason: of a bad pair grpc says only that the address can't be bound."""
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


def _refuse_password() -> str:
    raise ValueError("a key with a password")
