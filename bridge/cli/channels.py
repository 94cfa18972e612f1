"""The connection to a bridge: plain, or TLS with the system's or other authorities, and with a client certificate."""

import argparse
import ssl
from pathlib import Path
from typing import Final

import grpc

from bridge.cli.defaults import UsageError

__all__ = ["open_channel"]

_OPTIONS: Final = (("grpc.max_receive_message_length", -1), ("grpc.primary_user_agent", "ollm-bridge-chat"))
"""A completion may be larger than the 4 MiB that a client accepts by default."""


def open_channel(options: argparse.Namespace) -> grpc.aio.Channel:
    """Return a channel to the options' address. Raises UsageError if a file can't be used."""
    scheme, _, rest = options.address.rpartition("://")
    if scheme not in {"", "http", "https", "unix"}:
        raise UsageError(f"--address: expected HOST:PORT, http:// or https://, found {options.address!r}")
    files = (options.ca_file, options.cert_file, options.key_file)
    address = options.address if scheme == "unix" else rest.rstrip("/")
    if not (options.tls or scheme == "https" or any(files)):
        return grpc.aio.insecure_channel(address, options=_OPTIONS)
    if (options.cert_file is None) != (options.key_file is None):
        raise UsageError("--cert-file and --key-file: expected both or none")
    roots, chain, key = (None if path is None else _read(path) for path in files)
    _check_files(*files)
    credentials = grpc.ssl_channel_credentials(roots, key, chain)
    name = (("grpc.ssl_target_name_override", options.server_name),) if options.server_name else ()
    return grpc.aio.secure_channel(address, credentials, options=(*_OPTIONS, *name))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot read this file: {error.strerror}") from None


def _check_files(ca: Path | None, cert: Path | None, key: Path | None) -> None:
    """Raise UsageError if the files have no certificates and no key, of which grpc would say little, and late."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if ca is not None:
            context.load_verify_locations(ca)
    except ssl.SSLError as error:
        raise UsageError(f"--ca-file: expected certificates in PEM, found: {error}") from None
    try:
        if cert is not None:
            context.load_cert_chain(cert, key, password=_refuse_password)
    except (ssl.SSLError, ValueError) as error:
        raise UsageError(f"--cert-file and --key-file: expected a certificate and its key, found: {error}") from None


def _refuse_password() -> str:
    raise ValueError("a key with a password")
