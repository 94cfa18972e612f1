"""Tests of bridge/server/web.py: where the web port listens, and what can't be used. Its calls: tests/e2e/."""

import socket

import pytest

from bridge.core.headers import HeaderPolicy
from bridge.server.boundary import Boundary
from bridge.server.callers import Callers
from bridge.server.web import serve_web
from bridge.settings import Settings, SettingsError
from tests.kit.client import chat
from tests.kit.processes import has_ipv6
from tests.kit.web import Web
from tests.unit.server.fake_service import Service, succeed

NEEDS_IPV6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")


def serve(**settings):
    made = Settings(**{"web_listen": "127.0.0.1:0"} | settings)
    return serve_web(Boundary(Service(succeed), HeaderPolicy(product="t/1"), Callers(made), made), made)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", pytest.param("[::1]", marks=NEEDS_IPV6)])
async def test_free_port_is_in_the_address_and_answers(host):
    async with serve(web_listen=f"{host}:0") as address, Web(address) as web:
        assert address.rpartition(":")[0] == host
        assert (await web.ask(chat())).code == 0


async def test_port_that_is_taken_cannot_be_used():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(
            SettingsError, match=f"^web_listen: expected an address that can be bound, found '{address}'"
        ):
            async with serve(web_listen=address):
                pass


REFUSED = {
    "exposed": ({"web_listen": "0.0.0.0:0"}, "web_listen: expected a loopback address"),
    "host of others": ({"web_listen": "192.0.2.1:0", "insecure": True}, "Cannot assign requested address"),
    "no certificate": ({"tls": {"cert_file": "/nowhere", "key_file": "/nowhere"}}, "tls.cert_file"),
}


@pytest.mark.parametrize(("settings", "message"), REFUSED.values(), ids=REFUSED)
async def test_settings_that_cannot_be_used_are_refused(settings, message):
    with pytest.raises(SettingsError, match=message):
        async with serve(**settings):
            pass
