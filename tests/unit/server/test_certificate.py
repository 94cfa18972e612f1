"""Tests of bridge/server/certificate.py: names by type, as another reader of certificates has them."""

import contextlib
import ssl

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from bridge.server.certificate import CertificateError, list_identities
from tests.kit.certificates import DNS, EMAIL, IP, URI, create_pem

ADMIN = "spiffe://prod/ns/billing/sa/admin"

IDENTITIES = {
    "SPIFFE id alone": ((DNS("a.example"), URI(ADMIN)), (ADMIN,)),
    "DNS names without one": ((DNS("a.example"), DNS("b.example"), IP("10.0.0.1")), ("a.example", "b.example")),
    "DNS names beside another URI": ((URI("https://a.example/"), DNS("a.example")), ("a.example",)),
    "no e-mail address": ((EMAIL("admin@a.example"),), ()),
    "no common name": ((), ()),
    "a wildcard as it stands": ((DNS("*.a.example"),), ("*.a.example",)),
    "a name of many bytes": ((DNS("a" * 300),), ("a" * 300,)),
}


@pytest.mark.parametrize(("names", "expected"), IDENTITIES.values(), ids=IDENTITIES)
def test_identity_is_the_spiffe_id_else_the_dns_names(names, expected):
    assert list_identities(create_pem(*names, common_name=ADMIN)) == expected


REFUSED = {
    "two SPIFFE ids": (URI(ADMIN), URI("spiffe://prod/b")),
    "two URIs": (URI(ADMIN), URI("https://a.example/")),
    "DNS name with a NUL": (DNS("billing.prod.example\0.evil.dev"),),
    "URI with a NUL": (URI(f"{ADMIN}\0/x"),),
    "DNS name that reads as a SPIFFE id": (DNS(ADMIN),),
    "DNS name with a blank": (DNS("a example"),),
    "empty DNS name": (DNS(""),),
    "NUL beside a good SPIFFE id": (DNS("a\0b"), URI(ADMIN)),
}


@pytest.mark.parametrize("names", REFUSED.values(), ids=REFUSED)
def test_ambiguous_or_malformed_names_identify_nobody(names):
    with pytest.raises(CertificateError):
        list_identities(create_pem(*names))


HOSTS = st.from_regex(r"[a-z0-9-]{1,20}(\.[a-z0-9-]{1,20}){0,3}", fullmatch=True)


@given(st.lists(st.one_of(HOSTS.map(DNS), HOSTS.map(lambda host: EMAIL(f"a@{host}"))), max_size=5), st.booleans())
def test_names_of_any_certificate_are_those_that_another_reader_finds(names, has_id):
    pem = create_pem(*names, *([URI(ADMIN)] if has_id else []))
    extensions = x509.load_pem_x509_certificate(pem).extensions
    found = extensions.get_extension_for_class(x509.SubjectAlternativeName).value if names or has_id else None
    expected = [ADMIN] if has_id else found.get_values_for_type(DNS) if found else []
    assert list(list_identities(pem)) == expected


GOOD = ssl.PEM_cert_to_DER_cert(create_pem(DNS("a.example"), URI(ADMIN)).decode())


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255), st.booleans())
def test_any_damage_is_an_error_or_another_name_and_never_a_fault(at, byte, is_cut):
    damaged = GOOD[:at] if is_cut else GOOD[:at] + bytes([byte]) + GOOD[at + 1 :]
    with contextlib.suppress(CertificateError):
        list_identities(ssl.DER_cert_to_PEM_cert(damaged).encode())


@pytest.mark.parametrize("pem", [b"", b"none", b"\xff", b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----"])
def test_text_that_is_no_certificate_is_an_error(pem):
    with pytest.raises(CertificateError):
        list_identities(pem)
