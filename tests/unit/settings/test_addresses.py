"""Tests of bridge/settings/addresses.py."""

import pytest

from bridge.settings.addresses import (
    check_listen_address,
    check_networks,
    check_optional_address,
    is_loopback,
    split_address,
)


@pytest.mark.parametrize(
    ("address", "parts"),
    [("127.0.0.1:0", ("127.0.0.1", 0)), ("[::1]:65535", ("[::1]", 65535)), ("host:80", ("host", 80))],
)
def test_address_is_split_at_its_last_colon(address, parts):
    assert split_address(address) == parts


INVALID_ADDRESSES = ["host", "host:", ":80", "host:-1", "host:65536", "host:8o", "host:٣"]


@pytest.mark.parametrize("address", ["", *INVALID_ADDRESSES])
def test_address_without_host_or_port_is_refused(address):
    with pytest.raises(ValueError, match="HOST:PORT"):
        split_address(address)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("::", False),
        ("localhost.example", False),
        ("", False),
    ],
)
def test_loopback_is_recognized_by_name_and_by_number(host, expected):
    assert is_loopback(host) is expected


@pytest.mark.parametrize("address", ["127.0.0.1:0", "unix:/run/bridge.sock", "unix:bridge.sock"])
def test_listen_address_is_a_port_or_a_socket(address):
    assert check_listen_address(address) == address


@pytest.mark.parametrize("address", ["", "unix:", "/run/bridge.sock", *INVALID_ADDRESSES])
def test_other_listen_address_is_refused(address):
    with pytest.raises(ValueError, match="HOST:PORT"):
        check_listen_address(address)


def test_admin_port_may_be_off():
    assert check_optional_address("") == ""
    assert check_optional_address("127.0.0.1:9464") == "127.0.0.1:9464"
    with pytest.raises(ValueError, match="HOST:PORT"):
        check_optional_address("unix:/run/admin.sock")


def test_address_is_a_network_of_one():
    assert check_networks(["10.0.0.1", "::1", "127.0.0.0/8"]) == ("10.0.0.1/32", "::1/128", "127.0.0.0/8")


@pytest.mark.parametrize("network", ["localhost", "10.0.0.1/8", "10.0.0.0/33", "", "unix:"])
def test_other_network_is_refused(network):
    with pytest.raises(ValueError, match="expected addresses or networks"):
        check_networks([network])
