"""Tests of bridge/settings/describe.py: settings and their errors in plain text, without a secret."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.settings import SettingsError, load, setting_names
from bridge.settings.describe import describe_unknown, show_path, show_value
from bridge.settings.names import is_secret


def load_invalid(**flags) -> str:
    with pytest.raises(SettingsError) as caught:
        load(flags=flags, environ={})
    return str(caught.value)


def test_every_setting_is_described_with_its_value_and_origin():
    flags = {
        "upstream": {"api_key": "sesame", "proxy": "http://me:sesame@p", "forward_metadata": ["x-tëam"]},
        "tls": {"cert_file": "/tls/cert.pem", "key_file": "key.pem"},
    }
    rows = {row.name: (row.value, row.origin) for row in load(flags=flags, environ={}).describe()}
    assert list(rows) == setting_names()
    assert rows["upstream.api_key"] == ("set, not shown", "flag")
    assert rows["upstream.proxy"] == ("set, not shown", "flag")
    assert rows["upstream.forward_metadata"] == ('["x-tëam"]', "flag")
    assert rows["tls.cert_file"] == ('"/tls/cert.pem"', "flag")
    assert rows["tls.key_file"] == ('"key.pem"', "flag")
    assert rows["upstream.ca_file"] == ("unset", "default")
    assert rows["calls_max"] == ("1000", "default")


def test_origin_of_a_table_is_that_of_its_entries():
    rows = {row.name: row for row in load(flags={"tags": {"fixed": {"team": "a"}}}, environ={}).describe()}
    assert rows["tags.fixed"].value == '{"team": "a"}'
    assert rows["tags.fixed"].origin == "flag"


def test_secret_in_the_place_of_a_path_is_not_described():
    flags = {"tokens_file": "team-a sesame", "upstream": {"api_key_file": "sk-ollm-a-sesame"}}
    rows = load(flags=flags, environ={}).describe()
    assert "sesame" not in str(rows)
    assert [row.value for row in rows if row.name in {"tokens_file", "upstream.api_key_file"}] == ["set, not shown"] * 2


UNKNOWN = {
    "letters changed": ("listne", "listne: unknown setting (did you mean listen?)"),
    "another case": ("Upstream.Base_URL", "Upstream.Base_URL: unknown setting (did you mean upstream.base_url?)"),
    "nothing like it": ("colour", "colour: unknown setting"),
}


@pytest.mark.parametrize(("name", "message"), UNKNOWN.values(), ids=UNKNOWN)
def test_error_for_an_unknown_name_suggests_the_closest_one(name, message):
    assert describe_unknown(name, setting_names()) == message


ERRORS = {
    "a word for a number or auto": (
        {"workers": "many"},
        "workers: expected a whole number or 'auto', found 'many' (from the flag)",
    ),
    "too small a number or auto": (
        {"workers": 0},
        "workers: expected a number greater than or equal to 1 or 'auto', found 0 (from the flag)",
    ),
    "a fraction": (
        {"calls_max": 1.5},
        "calls_max: expected a whole number, found 1.5 (from the flag)",
    ),
    "a number for a text": ({"listen": 3}, "listen: expected a text, found 3 (from the flag)"),
    "nothing for a text": (
        {"tags": {"identity": ""}},
        "tags.identity: expected a text that is not empty, found '' (from the flag)",
    ),
    "a text for a list": (
        {"upstream": {"forward_metadata": "x-team"}},
        "upstream.forward_metadata: expected a list, found 'x-team' (from the flag)",
    ),
    "a number in a list": (
        {"upstream": {"forward_metadata": ["x-team", 3]}},
        "upstream.forward_metadata.1: expected a text, found 3 (from the flag)",
    ),
    "a number in a table": (
        {"tags": {"fixed": {"team": 1}}},
        "tags.fixed.team: expected a text, found 1 (from the flag)",
    ),
    "a text for a table": (
        {"upstream": "sesame"},
        "upstream: expected a table of settings, found a value (not shown) (from the flag)",
    ),
    "a secret of a wrong type": (
        {"upstream": {"api_key": 3}},
        "upstream.api_key: expected a text, found a value (not shown) (from the flag)",
    ),
    "a text of several lines": (
        {"listen": "sesame\nsesame"},
        (
            "listen: expected HOST:PORT, with a port of 0 to 65535 (IPv6: [HOST]:PORT), found a value (not shown) "
            "(from the flag)"
        ),
    ),
    "user and query in a URL": (
        {"upstream": {"base_url": "https://me:ses ame/sesame@h/?api_key=sesame#sesame"}},
        (
            "upstream.base_url: expected a URL without user, query or fragment, found "
            "'https://[redacted]@h/?[redacted]' (from the flag)"
        ),
    ),
    "several settings": (
        {"upstream": {"base_url": "http://10.0.0.1", "api_key": "sesame", "keepalive_s": 3}},
        (
            "upstream: expected an https:// base_url, one at a loopback address, or plaintext = true, found "
            "base_url = 'http://10.0.0.1', api_key = a value (not shown), keepalive_s = 3"
        ),
    ),
    "several errors": (
        {"calls_max": 0, "lsiten": 1},
        (
            "calls_max: expected a number greater than or equal to 1, found 0 (from the flag)\n"
            "lsiten: unknown setting (did you mean listen?)"
        ),
    ),
}


@pytest.mark.parametrize(("flags", "message"), ERRORS.values(), ids=ERRORS)
def test_error_is_described_in_plain_words(flags, message):
    assert load_invalid(**flags) == message


def test_long_value_is_truncated():
    message = load_invalid(listen="x" * 10_000)
    assert len(message) < 400
    assert "…" in message


PATHS = {
    "absolute": ("/run/secrets/key", True),
    "relative": ("./key", True),
    "above": ("../key", True),
    "with an ending": ("tls/key.pem", True),
    "a key": ("sk-ollm-abc-0123456789", False),
    "a key in PEM": ("-----BEGIN PRIVATE KEY-----\nMIIB/+x\n-----END PRIVATE KEY-----\n", False),
    "a token of three parts": ("eyJh.eyJz.c2VzYW1l", False),
    "two words": ("team-a sesame", False),
}


@pytest.mark.parametrize(("text", "shown"), PATHS.values(), ids=PATHS)
def test_path_is_shown_only_if_it_looks_like_one(text, shown):
    assert show_path(text) == (text if shown else "(its name, which does not look like a path, is not shown)")


SECRETS = st.text(st.characters(codec="utf-8", exclude_characters="/."), min_size=8)


@given(secret=SECRETS)
def test_secret_in_any_place_that_can_hold_one_is_never_shown(secret):
    for name in setting_names():
        if is_secret(name) or name.endswith("_file"):
            assert secret not in show_value(name, secret)


@given(
    secret=st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=8), path=st.sampled_from(["", "/p"])
)
def test_password_and_query_of_a_url_are_never_shown(secret, path):
    for url in (f"https://me:{secret}@host{path}", f"https://host{path}?key={secret}", f"https://host{path}#{secret}"):
        assert secret not in show_value("upstream.base_url", url)
