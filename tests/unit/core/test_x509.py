"""Tests of bridge/core/x509.py: when certificates end. tests/unit/server/test_certificate.py walks over their names."""

import base64
import datetime as dt

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.x509 import list_validities, walk

CA = trustme.CA()


def issue(*, until: dt.datetime) -> bytes:
    return CA.issue_cert("localhost", not_after=until).cert_chain_pems[0].bytes()


@pytest.mark.parametrize(
    "until",
    [
        dt.datetime(2000, 2, 29, 23, 59, 59, tzinfo=dt.UTC),
        dt.datetime(2049, 12, 31, tzinfo=dt.UTC),
        dt.datetime(2050, 1, 1, tzinfo=dt.UTC),
        dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC),
    ],
    ids=["past", "the last UTCTime", "the first GeneralizedTime", "never"],
)
def test_end_of_a_certificate_is_read_in_both_forms_of_time(until):
    assert [each.end for each in list_validities(issue(until=until))] == [until.timestamp()]


def test_every_certificate_of_a_file_is_read_and_nothing_else():
    first, second = (dt.datetime(year, 1, 1, tzinfo=dt.UTC) for year in (2031, 2030))
    key = CA.issue_cert("localhost").private_key_pem.bytes()
    found = list_validities(b"a comment\n" + issue(until=first) + key + issue(until=second).replace(b"\n", b"\r\n"))
    assert [each.end for each in found] == [first.timestamp(), second.timestamp()]
    assert all(each.start < each.end for each in found)
    assert list_validities(b"") == []


def wrap(der: bytes) -> bytes:
    body = base64.b64encode(der)
    return b"-----BEGIN CERTIFICATE-----\n" + body + b"\n-----END CERTIFICATE-----\n"


@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(der):
    try:
        list_validities(wrap(der))
    except (ValueError, IndexError):
        return


def test_each_cut_of_a_certificate_is_refused():
    der = base64.b64decode(b"".join(issue(until=dt.datetime(2030, 1, 1, tzinfo=dt.UTC)).splitlines()[1:-1]))
    for cut in range(len(der)):
        with pytest.raises((ValueError, IndexError)):
            list_validities(wrap(der[:cut]))


@given(st.binary(max_size=40))
def test_any_bytes_are_walked_within_their_bounds(der):
    try:
        for _, start, stop in walk(der, 0, len(der)):
            assert 0 < start <= stop <= len(der)
    except ValueError:
        return
