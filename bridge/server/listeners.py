"""Where calls are taken: an address, plain or TLS, bound so that what is wrong is said before anything is served."""

import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Final, cast

import grpc
import structlog

from bridge.reload import WatchedFile
from bridge.settings import Settings, SettingsError, TlsSettings, is_loopback, split_address

__all__ = ["bind"]

_UNIX: Final = "unix:"
_LOG: Final = structlog.get_logger("ollm_bridge")


def bind(server: grpc.aio.Server, settings: Settings) -> str:
    """Bind the server to the address that the settings say, and give it with its port. Raises SettingsError."""
    listen = settings.listen
    credentials = _credentials(settings.tls) if settings.tls.cert_file is not None else None
    if listen.startswith(_UNIX):
        _refuse_taken_socket(listen.removeprefix(_UNIX))
    elif credentials is None and not is_loopback(split_address(listen)[0]):
        if not settings.insecure:
            expected = "a loopback address, TLS (tls.cert_file) or insecure = true"
            raise SettingsError(f"listen: expected {expected}, found {listen!r} without TLS")
        _LOG.warning("taking calls without TLS at an address other than loopback: insecure is true", listen=listen)
    try:
        port = server.add_secure_port(listen, credentials) if credentials else server.add_insecure_port(listen)
    except RuntimeError as error:
        raise SettingsError(f"listen: expected an address that can be bound, found {listen!r}: {error}") from None
    return listen if listen.startswith(_UNIX) else f"{listen.rpartition(':')[0]}:{port}"


def _refuse_taken_socket(path: str) -> None:
    """Refuse a socket that is served: grpc would unlink it, and cut its server off without a word."""
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
        try:
            probe.connect(path)
        except OSError:
            return
    raise SettingsError(f"listen: expected a socket that nobody listens at, found unix:{path} taken")


def _credentials(tls: TlsSettings) -> grpc.ServerCredentials:
    """Give credentials that follow their files. grpc asks at each handshake, on a thread of its own."""
    files = {
        name: WatchedFile(path, name=f"tls.{name}", secret=name == "key_file")
        for name in ("cert_file", "key_file", "client_ca_file")
        if (path := getattr(tls, name)) is not None
    }
    _check(tls)
    contents = [each.read() for each in files.values()]

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal contents
        now = [each.read() for each in files.values()]
        if now == contents:
            return None
        try:
            _check(tls)
        except SettingsError:  # the key is renewed, the certificate not yet: the old pair still serves
            return None
        contents = now
        return _configuration(now)

    return _dynamic(_configuration(contents), fetch, require_client=tls.client_ca_file is not None)


def _dynamic(
    initial: grpc.ServerCertificateConfiguration,
    fetch: Callable[[], grpc.ServerCertificateConfiguration | None],
    *,
    require_client: bool,
) -> grpc.ServerCredentials:
    asked = cast("Callable[[], grpc.ServerCertificateConfiguration]", fetch)  # None: no change
    return grpc.dynamic_ssl_server_credentials(initial, asked, require_client_authentication=require_client)


def _configuration(contents: list[bytes]) -> grpc.ServerCertificateConfiguration:
    certificate, key, *authorities = contents
    return grpc.ssl_server_certificate_configuration([(key, certificate)], authorities[0] if authorities else None)


def _check(tls: TlsSettings) -> None:
    """Of a bad pair grpc says only that the address can't be bound; OpenSSL says what is wrong."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(str(tls.cert_file), tls.key_file, password=_no_password)
    except (ssl.SSLError, OSError, ValueError) as error:
        raise SettingsError(
            f"tls.cert_file, tls.key_file: expected a certificate and its key, found: {error}"
        ) from None
    if tls.client_ca_file is not None:
        try:
            context.load_verify_locations(tls.client_ca_file)
        except (ssl.SSLError, OSError) as error:
            raise SettingsError(f"tls.client_ca_file: expected certificates in PEM, found: {error}") from None


def _no_password() -> str:
    raise ValueError("a key that asks for a password")
