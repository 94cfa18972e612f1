"""Tests of bridge/cli/channels.py: what can't be used is said before a call is made."""

import argparse
from pathlib import Path

import pytest

from bridge.cli.channels import open_channel
from bridge.cli.defaults import UsageError
from tests.kit.certificates import Certificates


def parse_options(address: str, **files: Path) -> argparse.Namespace:
    none = {"ca_file": None, "cert_file": None, "key_file": None, "server_name": None, "tls": False}
    return argparse.Namespace(address=address, **none | files)


UNUSABLE = {
    "another scheme": (parse_options("ftp://h:1"), "--address: expected HOST:PORT, http:// or https://"),
    "a file that is missing": (parse_options("h:1", ca_file=Path("/no/ca.pem")), "/no/ca.pem: cannot read this file"),
    "a certificate without its key": (
        parse_options("h:1", cert_file=Path("/no/cert.pem")),
        "--cert-file and --key-file: expected both or none",
    ),
}


@pytest.mark.parametrize(("options", "message"), UNUSABLE.values(), ids=UNUSABLE)
def test_option_that_cannot_be_used_is_a_usage_error(options, message):
    with pytest.raises(UsageError) as caught:
        open_channel(options)
    assert str(caught.value).startswith(message)


def test_files_without_certificates_and_keys_of_another_are_usage_errors(tmp_path):
    own = Certificates(tmp_path)
    broken = tmp_path / "broken.pem"
    broken.write_text("no certificate")
    with pytest.raises(UsageError, match=r"^--ca-file: expected certificates in PEM, found: "):
        open_channel(parse_options("h:1", ca_file=broken))
    for cert, key in ((broken, own.key_file), (own.cert_file, broken)):
        with pytest.raises(
            UsageError, match=r"^--cert-file and --key-file: expected a certificate and its key, found: "
        ):
            open_channel(parse_options("h:1", cert_file=cert, key_file=key))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "http://127.0.0.1:1/", "https://localhost:1", "unix:///tmp/a.sock"])
async def test_address_may_have_a_scheme(address):
    await open_channel(parse_options(address)).close()
