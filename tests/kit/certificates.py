"""An authority of the tests' own, in a file alone: to load the system's certificates takes 75 ms an engine."""

import atexit
import shutil
import ssl
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import trustme

__all__ = ["Certificates", "authority", "ca_file", "server_context"]


@cache
def authority() -> trustme.CA:
    return trustme.CA()


@cache
def ca_file() -> Path:
    """Return a file with the authority alone."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    authority().cert_pem.write_to_path(folder / "authority.pem")
    return folder / "authority.pem"


def server_context(name: str = "127.0.0.1", *, alpn: Sequence[str] = ()) -> ssl.SSLContext:
    """Return the TLS of a server whose certificate is good for a name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert(name).configure_cert(context)
    context.set_alpn_protocols(list(alpn))
    return context


class Certificates:
    """An authority, and a certificate of it for localhost, in the files `cert_file` and `key_file`."""

    def __init__(self, path):
        self.authority = trustme.CA()
        self.root = self.authority.cert_pem.bytes()
        self.cert_file, self.key_file, self.ca_file = path / "cert.pem", path / "key.pem", path / "ca.pem"
        self.ca_file.write_bytes(self.root)
        self.renew()

    def renew(self):
        self.write(self.authority.issue_cert("localhost"))

    def write(self, certificate):
        self.cert_file.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
        self.key_file.write_bytes(certificate.private_key_pem.bytes())
        self.key_file.chmod(0o600)

    @property
    def settings(self):
        return {"cert_file": self.cert_file, "key_file": self.key_file}
