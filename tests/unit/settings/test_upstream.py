"""Tests of bridge/settings/upstream.py: URLs that are refused, and settings that contradict each other."""

import pytest

from bridge.settings import Settings, SettingsError, load

BASE_URLS = {
    "https": ("https://gateway.example", "https://gateway.example"),
    "a slash at the end": ("https://gateway.example/", "https://gateway.example"),
    "a path": ("https://gateway.example/team/", "https://gateway.example/team"),
    "plain at loopback": ("http://[::1]:80", "http://[::1]:80"),
}


@pytest.mark.parametrize(("url", "root"), BASE_URLS.values(), ids=BASE_URLS)
def test_root_of_a_gateway_has_no_last_slash(url, root):
    assert Settings(upstream={"base_url": url}).upstream.base_url == root


def test_plain_text_to_a_host_elsewhere_can_be_allowed():
    upstream = Settings(upstream={"base_url": "http://gateway.example", "plaintext": True}).upstream
    assert upstream.base_url == "http://gateway.example"


def test_gateway_may_be_a_unix_socket():
    upstream = load(flags={"upstream": {"base_url": "unix:/run/gateway.sock"}}, environ={}).settings.upstream
    assert upstream.socket_path == "/run/gateway.sock"
    assert load(environ={}).settings.upstream.socket_path is None


@pytest.mark.parametrize(
    ("upstream", "words"),
    [
        (
            {"base_url": "unix:/run/gateway.sock", "proxy": "http://proxy:1"},
            "expected no proxy beside a base_url of unix",
        ),
        ({"base_url": "unix:gateway.sock"}, "expected a URL such as https://gateway.example"),
        ({"client_cert_file": "/cert.pem"}, "expected client_cert_file and client_key_file together"),
        ({"client_key_file": "/key.pem"}, "expected client_cert_file and client_key_file together"),
        ({"engine": "curl"}, "upstream.engine: expected 'native' or 'httpx'"),
        ({"head_bytes_max": 10}, "upstream.head_bytes_max"),
        ({"stall_timeout_s": 0}, "upstream.stall_timeout_s"),
        ({"deadline_header": ""}, "upstream.deadline_header"),
        ({"deadline_header_unit": "m"}, "upstream.deadline_header_unit: expected 'ms' or 's'"),
    ],
)
def test_upstream_that_cannot_be_used_is_refused(upstream, words):
    with pytest.raises(SettingsError, match=words):
        load(flags={"upstream": upstream}, environ={})


PROXIES = {
    "http": ("http://user:sesame@proxy.example:3128", True),
    "https with a slash": ("https://proxy.example/", True),
    "SOCKS": ("socks5://[::1]:1080", True),
    "no URL": ("nonsense-sesame", False),
    "no host": ("http://", False),
    "another scheme": ("ftp://proxy.example", False),
    "a path": ("http://proxy.example/sesame", False),
    "a query": ("http://proxy.example?sesame", False),
    "no port": ("http://proxy.example:sesame", False),
    "a blank in the user": ("http://me sesame/@proxy.example", False),
}


@pytest.mark.parametrize(("url", "is_valid"), PROXIES.values(), ids=PROXIES)
def test_proxy_is_a_url_of_a_host_and_never_in_a_message(url, is_valid):
    environ = {"OLLM_BRIDGE_UPSTREAM__PROXY": url}
    if is_valid:
        assert load(environ=environ).settings.upstream.proxy == url
        return
    with pytest.raises(SettingsError, match=r"^upstream\.proxy: expected ") as caught:
        load(environ=environ)
    assert "sesame" not in str(caught.value)


def test_stream_has_five_minutes_for_its_first_chunk_and_no_limit_without_output():
    upstream = Settings().upstream
    assert (upstream.first_chunk_timeout_s, upstream.idle_timeout_s, upstream.stall_timeout_s) == (300, 90, None)
