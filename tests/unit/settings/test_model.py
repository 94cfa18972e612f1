"""Tests of bridge/settings/model.py: fields, bounds and help."""

import pickle
from pathlib import Path

import pytest
from pydantic import ValidationError

from bridge.settings import SettingsError, load
from bridge.settings.model import Settings, is_list, is_path, is_secret, is_table, setting_names


def test_settings_are_frozen():
    settings = Settings()
    with pytest.raises(ValidationError):
        settings.calls_max = 3
    with pytest.raises(ValidationError):
        settings.upstream.keepalive_s = 3


def test_defaults_are_within_the_bounds():
    settings = Settings()
    assert Settings.model_validate(settings.model_dump()) == settings


def test_worker_process_gets_equal_settings():
    settings = Settings(upstream={"api_key": "sesame", "forward_metadata": ["x-team"]}, tags={"fixed": {"a": "b"}})
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_every_setting_has_help_that_is_a_sentence():
    for name in setting_names():
        *sections, key = name.split(".")
        model = Settings
        for section in sections:
            model = model.model_fields[section].annotation
        help_text = model.model_fields[key].description
        assert help_text[0].isupper() or help_text.startswith("json:"), name
        assert help_text.endswith("."), name


def test_text_of_the_settings_has_no_secrets():
    settings = Settings(upstream={"api_key": "sesame", "proxy": "http://me:sesame@p"})
    assert "sesame" not in f"{settings!r} {settings}"


def test_kind_of_a_setting_is_known_by_its_name():
    names = setting_names()
    assert {name for name in names if is_secret(name)} == {"upstream.api_key", "upstream.proxy"}
    assert {name for name in names if is_table(name)} == {"tags.fixed", "tags.metadata"}
    assert {"upstream.forward_metadata", "tls.allowed_identities"} <= {name for name in names if is_list(name)}
    assert {name for name in names if is_path(name)} == {name for name in names if name.endswith("_file")}


RULES = {
    "two keys": {"upstream": {"api_key": "sesame", "api_key_file": Path("/key")}},
    "plain text to a host elsewhere": {"upstream": {"base_url": "http://gateway.example"}},
    "a certificate without its key": {"tls": {"cert_file": "/cert"}},
    "a key without its certificate": {"tls": {"key_file": "/key"}},
    "client certificates without TLS": {"tls": {"client_ca_file": "/ca"}},
    "identities without client certificates": {
        "tls": {"cert_file": "/cert", "key_file": "/key", "allowed_identities": ["a.example"]}
    },
}


@pytest.mark.parametrize("values", RULES.values(), ids=RULES)
def test_settings_that_contradict_each_other_are_refused(values):
    with pytest.raises(ValidationError, match="expected "):
        Settings(**values)


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


@pytest.mark.parametrize("count", [1, 256, "auto"])
def test_workers_are_a_number_or_auto(count):
    assert Settings(workers=count).workers == count


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
    ],
)
def test_upstream_that_cannot_be_used_is_refused(upstream, words):
    with pytest.raises(SettingsError, match=words):
        load(flags={"upstream": upstream}, environ={})
