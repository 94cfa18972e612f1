"""The names in a caller's certificate, by type, read from the certificate itself.

grpc's auth context cuts a name at a NUL, puts all types of alternative names in one list, and has the common name,
which is free text at many authorities. So the one extension that identifies is read here: X.509's subject alternative
names (RFC 5280, 4.2.1.6), of which URIs and DNS names count. The TLS library has verified the certificate, so this is a
walk over DER that is known to be good; whatever is unexpected all the same is an error and never a name.
"""

import re
import ssl
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from bridge.core.x509 import OCTETS, OID, SEQUENCE, find_values, walk

__all__ = ["CertificateError", "list_identities"]

_SPIFFE: Final = "spiffe://"
_EXTENSIONS: Final = 0xA3
_DNS_NAME, _URI = 0x82, 0x86
_ALTERNATIVE_NAMES: Final = bytes((0x55, 0x1D, 0x11))
_DNS: Final = re.compile(r"[A-Za-z0-9*_-]+(?:\.[A-Za-z0-9*_-]+)*\.?")
_PRINTABLE: Final = re.compile(r"[\x21-\x7e]+")
_CERTIFICATES_KEPT: Final = 1024


class CertificateError(Exception):
    """A certificate that identifies nobody, since its names are ambiguous or malformed."""


def list_identities(pem: bytes) -> tuple[str, ...]:
    """Return what a certificate identifies its holder as: the SPIFFE id alone if it has one, else its DNS names.

    Raises CertificateError if it has several URIs, or a name with characters that such a name does not have.
    """
    identities = _find_identities(pem)
    if isinstance(identities, str):
        raise CertificateError(identities)
    return identities


@lru_cache(_CERTIFICATES_KEPT)  # a certificate comes with each of its holder's calls
def _find_identities(pem: bytes) -> tuple[str, ...] | str:
    """Return the identities, or why there are none."""
    try:
        names = list(_read_names(ssl.PEM_cert_to_DER_cert(pem.decode("ascii"))))
    except ValueError:
        return "its names can't be read"
    uris = [name for kind, name in names if kind == _URI]
    dns_names = [name for kind, name in names if kind == _DNS_NAME]
    if not all(map(_PRINTABLE.fullmatch, uris)) or not all(map(_DNS.fullmatch, dns_names)):
        return "a name of it has characters that such names do not have"
    if len(uris) > 1:
        return f"it has {len(uris)} URIs, and a SPIFFE certificate has one"
    return tuple(uris) if uris and uris[0].startswith(_SPIFFE) else tuple(dns_names)


def _read_names(der: bytes) -> Iterator[tuple[int, str]]:
    """Yield the tag and the text of each alternative name. Raises ValueError."""
    (certificate,) = find_values(der, 0, len(der), SEQUENCE)
    to_be_signed, *_ = find_values(der, *certificate, SEQUENCE)
    for extensions in find_values(der, *to_be_signed, _EXTENSIONS):
        (sequence,) = find_values(der, *extensions, SEQUENCE)
        for extension in find_values(der, *sequence, SEQUENCE):
            (oid,) = find_values(der, *extension, OID)
            if der[slice(*oid)] == _ALTERNATIVE_NAMES:
                (value,) = find_values(der, *extension, OCTETS)
                (names,) = find_values(der, *value, SEQUENCE)
                for tag, start, stop in walk(der, *names):
                    if tag in {_DNS_NAME, _URI}:
                        yield tag, der[start:stop].decode("latin-1")
