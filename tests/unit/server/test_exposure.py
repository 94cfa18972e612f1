"""Tests of bridge/server/exposure.py at the web port; tests/unit/server/test_listeners.py has the call port."""

import pytest
from structlog.testing import capture_logs

from bridge.server.exposure import check_exposure
from bridge.settings import Settings, SettingsError

OWN_KEY = {"upstream": {"api_key": "sk-own"}}
REFUSED = {
    "without TLS": ({}, "web_listen: expected a loopback address, TLS .* or insecure = true, found '0.0.0.0:1'"),
    "own key": (OWN_KEY | {"insecure": True}, "web_listen: expected .* or open = true beside the bridge's own key"),
}


@pytest.mark.parametrize(("settings", "message"), REFUSED.values(), ids=REFUSED)
def test_address_that_everybody_reaches_is_refused(settings, message):
    with pytest.raises(SettingsError, match=message):
        check_exposure(Settings(web_listen="0.0.0.0:1", **settings), "web_listen")


def test_allowed_exposure_is_a_warning():
    with capture_logs() as lines:
        check_exposure(Settings(web_listen="0.0.0.0:1", insecure=True, open=True, **OWN_KEY), "web_listen")
    assert ["the web port" in line["event"] or "without TLS" in line["event"] for line in lines] == [True, True]


async def test_pages_of_all_origins_may_not_spend_on_the_bridges_own_key_even_on_loopback():
    settings = {"web_listen": "127.0.0.1:1", "web_allowed_origins": ["*"]}
    with pytest.raises(SettingsError, match=r"^web_allowed_origins: expected .* found '\*'"):
        check_exposure(Settings(**settings, **OWN_KEY), "web_listen")
    check_exposure(Settings(**settings), "web_listen")  # callers bring their own keys
    check_exposure(Settings(**settings, open=True, **OWN_KEY), "web_listen")
    check_exposure(Settings(**settings, tokens_file="tokens", **OWN_KEY), "web_listen")
    check_exposure(Settings(**settings, **OWN_KEY), "listen")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "localhost:1", "[::1]:1"])
def test_loopback_needs_nothing(address):
    with capture_logs() as lines:
        check_exposure(Settings(web_listen=address, **OWN_KEY), "web_listen")
    assert lines == []
