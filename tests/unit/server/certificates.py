"""Certificates with alternative names of any type and content, also such as no tool would issue."""

import ipaddress
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey as EcPrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID

KEY = Ed25519PrivateKey.generate()
DNS, URI, EMAIL, IP = (
    x509.DNSName,
    x509.UniformResourceIdentifier,
    x509.RFC822Name,
    lambda text: x509.IPAddress(ipaddress.ip_address(text)),
)


def create_pem(
    *names: x509.GeneralName, common_name: str = "any", key: Ed25519PrivateKey | EcPrivateKey = KEY
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
