"""The call port: an address, with TLS or without, bound so that every fault is reported before anything is served."""

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import cast

import grpc

from bridge.server.exposure import check_exposure
from bridge.server.tls_context import check_files, reload_files
from bridge.settings import UNIX, Settings, SettingsError, TlsSettings, split_address
from bridge.tcp import listen_tcp

__all__ = ["address_error", "bind", "check_socket", "prepare", "remove_socket"]


def bind(server: grpc.aio.Server, settings: Settings, on_handshake: Callable[[], None] = lambda: None) -> str:
    """Bind the server to the address in the settings, and return it with its port. Raises SettingsError.

    `on_handshake` is called when a caller begins a TLS handshake, in a thread of grpc's. It does not say how one ends.
    """
    listen = settings.listen
    credentials = prepare(settings, on_handshake)
    if listen.startswith(UNIX):
        check_socket(listen.removeprefix(UNIX))
    try:
        port = server.add_secure_port(listen, credentials) if credentials else server.add_insecure_port(listen)
    except RuntimeError as error:
        raise address_error("listen", listen, _find_bind_reason(listen) or error) from None
    return listen if listen.startswith(UNIX) else f"{listen.rpartition(':')[0]}:{port}"


def prepare(settings: Settings, on_handshake: Callable[[], None] = lambda: None) -> grpc.ServerCredentials | None:
    """Return the credentials to bind with, if callers need TLS. Raises SettingsError if it is not to be served so."""
    credentials = _credentials(settings.tls, on_handshake) if settings.tls.cert_file is not None else None
    check_exposure(settings, "listen")
    return credentials


def address_error(name: str, listen: str, reason: object) -> SettingsError:
    """Return the error of an address that can't be bound, with its setting's name."""
    return SettingsError(f"{name}: expected an address that can be bound, found {listen!r}: {reason}")


def check_socket(path: str) -> None:
    """Raise SettingsError if a socket is in use: to bind it would cut its server off without a message."""
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
        try:
            probe.connect(path)
        except OSError:
            return
    raise SettingsError(f"listen: unix:{path} is in use by another process")


def remove_socket(listen: str) -> None:
    """Remove the file of a Unix socket that is bound no more; do nothing for another address."""
    if listen.startswith(UNIX):
        with contextlib.suppress(OSError):
            Path(listen.removeprefix(UNIX)).unlink()


def _find_bind_reason(listen: str) -> str:
    """Return why an address can't be bound, which grpc does not say; "" if it is not found."""
    if listen.startswith(UNIX):
        return ""
    host, port = split_address(listen)
    try:
        for each in listen_tcp(host, port):
            each.close()
    except OSError as error:
        return str(error.strerror or error)
    return ""


def _credentials(tls: TlsSettings, on_handshake: Callable[[], None]) -> grpc.ServerCredentials:
    """Return credentials that follow their files. grpc asks for them at each handshake, on a thread of its own."""

    def parse(*contents: bytes) -> grpc.ServerCertificateConfiguration:
        check_files(tls)
        certificate, key, *authorities = contents
        return grpc.ssl_server_certificate_configuration([(key, certificate)], authorities[0] if authorities else None)

    configuration = reload_files(tls, parse)
    in_use = configuration.value

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal in_use
        on_handshake()
        previous, in_use = in_use, configuration.value
        return in_use if in_use is not previous else None

    return grpc.dynamic_ssl_server_credentials(
        in_use,
        cast("Callable[[], grpc.ServerCertificateConfiguration]", fetch),  # None: no change
        require_client_authentication=tls.client_ca_file is not None,
    )
