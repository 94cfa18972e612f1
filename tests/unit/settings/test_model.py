"""Tests of bridge/settings/model.py: fields, bounds and help."""

import pickle
from pathlib import Path

import pytest
from pydantic import ValidationError

from bridge.settings.model import Settings
from bridge.settings.names import setting_names


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


@pytest.mark.parametrize("count", [1, 256, "auto"])
def test_workers_are_a_number_or_auto(count):
    assert Settings(workers=count).workers == count
