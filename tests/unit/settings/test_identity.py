"""Tests of bridge/settings/identity.py: which settings of callers' identity go together."""

import pytest
from pydantic import ValidationError

from bridge.settings import MeshSettings, Settings

HEADER = {"identity_header": "l5d-client-id"}


def test_no_header_is_trusted_by_default_and_then_only_from_loopback():
    assert MeshSettings().identity_header is None
    assert MeshSettings(**HEADER).proxies == ("127.0.0.0/8", "::1/128")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mesh": {"allowed_identities": ["a.example"]}}, "expected identity_header beside allowed_identities"),
        ({"mesh": HEADER | {"proxies": ["localhost"]}}, "expected addresses or networks"),
        ({"mesh": {"identity_header": "x-user"}}, "x-forwarded-client-cert"),
        (
            {"mesh": HEADER, "tls": {"cert_file": "/c", "key_file": "/k", "client_ca_file": "/ca"}},
            "expected mesh.identity_header or tls.client_ca_file, not both",
        ),
    ],
)
def test_identity_that_has_no_source_or_two_is_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        Settings(**values)
