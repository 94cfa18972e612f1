"""What is read of certificates without the help of a TLS library: DER's values, and when a certificate ends.

The TLS library judges a certificate; here it is only walked over, and whatever is unexpected is an error.
"""

import base64
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final, NamedTuple

__all__ = ["OCTETS", "OID", "SEQUENCE", "Validity", "find_values", "list_validities", "walk"]

SEQUENCE, OID, OCTETS = 0x30, 0x06, 0x04
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18
_LONG_LENGTH: Final = 0x80
_LENGTH_BYTES_MAX: Final = 4
_LONG_TAG: Final = 0x1F
_VALIDITY: Final = 2
"""The place of the validity among the sequences of a certificate: signature, issuer, validity, subject, key."""
_CENTURY_PIVOT: Final = 50  # RFC 5280, 4.1.2.5.1
_PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL)
_TIMES: Final = {_UTC_TIME: re.compile(rb"\d{12}Z"), _GENERALIZED_TIME: re.compile(rb"\d{14}Z")}


class Validity(NamedTuple):
    """When a certificate begins and ends, in seconds since 1970."""

    start: float
    end: float


def list_validities(pem: bytes) -> list[Validity]:
    """Return the time of each certificate of a file. Raises ValueError or IndexError if one can't be read."""
    return [_find_validity(base64.b64decode(match[1])) for match in _PEM.finditer(pem)]


def _find_validity(der: bytes) -> Validity:
    (certificate,) = find_values(der, 0, len(der), SEQUENCE)
    to_be_signed, *_ = find_values(der, *certificate, SEQUENCE)
    validity = list(find_values(der, *to_be_signed, SEQUENCE))[_VALIDITY]
    begin, end = (_read_time(tag, der[start:stop]) for tag, start, stop in walk(der, *validity))
    return Validity(begin, end)


def _read_time(tag: int, text: bytes) -> float:
    if tag not in _TIMES or not _TIMES[tag].fullmatch(text):
        raise ValueError("a certificate without its times")
    digits = text[:-1].decode()
    if tag == _UTC_TIME:
        digits = ("20" if int(digits[:2]) < _CENTURY_PIVOT else "19") + digits
    return datetime.strptime(digits, "%Y%m%d%H%M%S").replace(tzinfo=UTC).timestamp()


def find_values(der: bytes, at: int, end: int, wanted: int) -> Iterator[tuple[int, int]]:
    """Yield where the contents of the values with this tag start and stop. Raises ValueError."""
    return ((start, stop) for tag, start, stop in walk(der, at, end) if tag == wanted)


def walk(der: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the tag of each value between two places, and where its content starts and stops. Raises ValueError."""
    while at < end:
        if end - at < 2 or der[at] & _LONG_TAG == _LONG_TAG:
            raise ValueError("malformed DER")
        tag, length, start = der[at], der[at + 1], at + 2
        if length >= _LONG_LENGTH:
            count = length - _LONG_LENGTH
            if not 1 <= count <= _LENGTH_BYTES_MAX or start + count > end:
                raise ValueError("malformed DER")
            length, start = int.from_bytes(der[start : start + count]), start + count
        at = start + length
        if at > end:
            raise ValueError("malformed DER")
        yield tag, start, at
