"""An authority of the tests' own, in a file alone: to load the system's certificates takes 75 ms an engine.

And certificates with alternative names of any type and content, also such as no tool would issue.
"""

import atexit
import ipaddress
import shutil
import ssl
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey as EcPrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID

__all__ = ["DNS", "EMAIL", "IP", "URI", "Certificates", "authority", "ca_file", "create_pem", "server_context"]


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


_KEY = Ed25519PrivateKey.generate()
DNS, URI, EMAIL, IP = (
    x509.DNSName,
    x509.UniformResourceIdentifier,
    x509.RFC822Name,
    lambda text: x509.IPAddress(ipaddress.ip_address(text)),
)


def create_pem(
    *names: x509.GeneralName, common_name: str = "any", key: Ed25519PrivateKey | EcPrivateKey = _KEY
) -> bytes:
    """Return a certificate with these alternative names."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder(subject, subject, key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, None if isinstance(key, Ed25519PrivateKey) else SHA256()).public_bytes(
        serialization.Encoding.PEM
    )
