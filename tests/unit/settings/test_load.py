"""Tests of bridge/settings/load.py: the sources of settings, and their errors."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.settings import Settings, SettingsError, load, setting_names

FILE = """
listen = "127.0.0.1:1"
call_timeout_s = 1
drain_grace_s = 1
[upstream]
base_url = "https://file.example"
idle_timeout_s = 1
forward_metadata = ["x-file"]
[log]
level = "error"
"""
ENVIRONMENT = {
    "OLLM_BRIDGE_CALL_TIMEOUT_S": "2",
    "OLLM_BRIDGE_DRAIN_GRACE_S": "2",
    "OLLM_BRIDGE_UPSTREAM__IDLE_TIMEOUT_S": "2",
    "OLLM_BRIDGE_UPSTREAM__FORWARD_METADATA": '["x-environment", "x-more"]',
    "OTHER": "ignored",
}
FLAGS = {"drain_grace_s": 3, "upstream": {"proxy": "http://flag.example:1"}}


def get_variable(name: str) -> str:
    return f"OLLM_BRIDGE_{name.replace('.', '__').upper()}"


@pytest.fixture
def config(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "bridge.toml"
        path.write_text(text)
        return path

    return write


def test_environment_overrides_the_file_and_flags_override_both(config):
    settings = load(config=config(FILE), flags=FLAGS, environ=ENVIRONMENT).settings
    assert settings.listen == "127.0.0.1:1"
    assert (settings.call_timeout_s, settings.drain_grace_s) == (2, 3)
    assert settings.upstream.base_url == "https://file.example"
    assert settings.upstream.idle_timeout_s == 2
    assert settings.upstream.forward_metadata == ("x-environment", "x-more")
    assert settings.upstream.proxy == "http://flag.example:1"
    assert settings.log.level == "error"
    assert settings.calls_max == 1000


def test_origin_of_each_setting_that_a_source_sets_is_kept(config):
    assert load(config=config(FILE), flags=FLAGS, environ=ENVIRONMENT).origins == {
        "listen": "file",
        "call_timeout_s": "environment",
        "drain_grace_s": "flag",
        "upstream.base_url": "file",
        "upstream.idle_timeout_s": "environment",
        "upstream.forward_metadata": "environment",
        "upstream.proxy": "flag",
        "log.level": "file",
    }


def test_defaults_have_no_origins():
    loaded = load(environ={})
    assert loaded.origins == {}
    assert loaded.settings == Settings()


def test_variables_may_be_of_any_case():
    assert load(environ={"ollm_bridge_Upstream__Base_Url": "https://a.example"}).settings.upstream.base_url == (
        "https://a.example"
    )


@pytest.mark.parametrize("name", setting_names())
def test_every_setting_has_a_variable(name):
    origins, message = load_variable(get_variable(name), "3")
    if origins is None:  # 3 is not a value of every setting
        section, _, key = name.rpartition(".")
        assert message.startswith((f"{name}: ", f"{get_variable(name)}: ", f"{section}: "))
        assert key in message
        assert "unknown" not in message
    else:
        assert origins == {name: "environment"}


def load_variable(variable, text):
    """Return the origins of the settings that a variable sets, or its error."""
    try:
        return load(environ={variable: text}).origins, ""
    except SettingsError as error:
        return None, str(error)


FORMS = {
    "a text": ("listen", "unix:/run/b.sock", "unix:/run/b.sock"),
    "a number": ("calls_max", " 12 ", 12),
    "a time": ("call_timeout_s", "1e2", 100.0),
    "true": ("insecure", "true", True),
    "on": ("insecure", "on", True),
    "1": ("insecure", "1", True),
    "no": ("upstream.require_finish_reason", "No", False),
    "a number or auto": ("workers", "auto", "auto"),
    "auto or a number": ("workers", "3", 3),
    "a list": ("upstream.return_headers", '["x-a", "x-b"]', ("x-a", "x-b")),
    "an empty list": ("upstream.return_headers", " []", ()),
    "a table": ("tags.fixed", '{"team": "search"}', {"team": "search"}),
    "a path": ("upstream.ca_file", "/ca.pem", Path("/ca.pem")),
    "an empty text": ("admin_listen", "", ""),
}


@pytest.mark.parametrize(("name", "text", "expected"), FORMS.values(), ids=FORMS)
def test_variable_is_parsed_by_the_type_of_its_setting(name, text, expected):
    value = load(environ={get_variable(name): text}).settings
    for part in name.split("."):
        value = getattr(value, part)
    assert value == expected


def test_tables_of_all_sources_are_merged(config):
    loaded = load(
        config=config('[tags.fixed]\nteam = "a"\nzone = "a"'),
        environ={"OLLM_BRIDGE_TAGS__FIXED": '{"team": "b", "cluster": "b"}'},
        flags={"tags": {"fixed": {"cluster": "c"}}},
    )
    assert loaded.settings.tags.fixed == {"team": "b", "zone": "a", "cluster": "c"}
    assert loaded.origins == {"tags.fixed": "flag"}


@given(st.lists(st.text()))
def test_any_list_is_parsed_unchanged(items):
    environ = {"OLLM_BRIDGE_UPSTREAM__FORWARD_METADATA": json.dumps(items)}
    assert load(environ=environ).settings.upstream.forward_metadata == tuple(items)


# Errors

UPSTREAM_VARIABLE = "OLLM_BRIDGE_UPSTREAM__BASE_URL"
UNKNOWN = {
    "file": ("listne = 1", {}, {}, "listne", "listen"),
    "file, inside": ("[upstream]\nbase_ulr = 1", {}, {}, "upstream.base_ulr", "upstream.base_url"),
    "file, a table": ("[upstraem]\nbase_url = 1", {}, {}, "upstraem", "upstream"),
    "environment": ("", {"OLLM_BRIDGE_LISTNE": "1"}, {}, "OLLM_BRIDGE_LISTNE", "OLLM_BRIDGE_LISTEN"),
    "environment, inside": (
        "",
        {"OLLM_BRIDGE_UPSTREAM__BASE_ULR": "1"},
        {},
        "OLLM_BRIDGE_UPSTREAM__BASE_ULR",
        UPSTREAM_VARIABLE,
    ),
    "environment, single underscore": (
        "",
        {"OLLM_BRIDGE_UPSTREAM_BASE_URL": "1"},
        {},
        "OLLM_BRIDGE_UPSTREAM_BASE_URL",
        UPSTREAM_VARIABLE,
    ),
    "flag": ("", {}, {"upstream": {"base_ulr": 1}}, "upstream.base_ulr", "upstream.base_url"),
}


@pytest.mark.parametrize(("text", "environ", "flags", "name", "closest"), UNKNOWN.values(), ids=UNKNOWN)
def test_unknown_name_is_an_error_in_every_source(config, text, environ, flags, name, closest):
    with pytest.raises(SettingsError) as caught:
        load(config=config(text), flags=flags, environ=environ)
    assert str(caught.value) == f"{name}: unknown setting (did you mean {closest}?)"


def test_every_unknown_variable_is_named():
    with pytest.raises(SettingsError) as caught:
        load(environ={"OLLM_BRIDGE_B": "sesame", "OLLM_BRIDGE_A": "sesame", "OLLM_BRIDGE_TAGS__FIXED__TEAM": "sesame"})
    assert str(caught.value).splitlines() == [
        "OLLM_BRIDGE_A: unknown setting",
        "OLLM_BRIDGE_B: unknown setting",
        "OLLM_BRIDGE_TAGS__FIXED__TEAM: unknown setting (did you mean OLLM_BRIDGE_TAGS__FIXED?)",
    ]


SERVICE_LINKS = {
    "OLLM_BRIDGE_SERVICE_HOST": "10.0.0.11",
    "OLLM_BRIDGE_SERVICE_PORT": "50051",
    "OLLM_BRIDGE_SERVICE_PORT_GRPC": "50051",
    "OLLM_BRIDGE_PORT": "tcp://10.0.0.11:50051",
    "OLLM_BRIDGE_PORT_50051_TCP": "tcp://10.0.0.11:50051",
    "OLLM_BRIDGE_PORT_50051_TCP_PROTO": "tcp",
    "OLLM_BRIDGE_PORT_50051_TCP_PORT": "50051",
    "OLLM_BRIDGE_PORT_50051_TCP_ADDR": "10.0.0.11",
    "OLLM_BRIDGE_ADMIN_SERVICE_HOST": "10.0.0.12",
    "OLLM_BRIDGE_ADMIN_PORT_9464_TCP_ADDR": "10.0.0.12",
}


def test_service_links_of_kubernetes_are_ignored():
    assert load(environ=SERVICE_LINKS).origins == {}


BAD = {
    "address": ("listen", "localhost", "HOST:PORT"),
    "port": ("listen", "localhost:65536", "HOST:PORT"),
    "zero seconds": ("call_timeout_s", "0", "greater than 0"),
    "not a number": ("call_timeout_s", "soon", "a number"),
    "nan": ("call_timeout_s", "nan", ""),
    "infinite": ("drain_grace_s", "inf", ""),
    "too many": ("calls_max", "0", "greater than or equal to 1"),
    "level": ("log.level", "loud", "'debug', 'info'"),
    "flag": ("upstream.require_finish_reason", "perhaps", "true or false"),
    "scheme": ("upstream.base_url", "ftp://a.example", "a URL such as https://gateway.example"),
    "no host": ("upstream.base_url", "https://", "a URL such as https://gateway.example"),
    "query": ("upstream.base_url", "https://a.example/?x=1", "a URL without user, query or fragment"),
    "the API's path": ("upstream.base_url", "https://a.example/v1/", "the gateway's root"),
    "the whole path": ("upstream.base_url", "https://a.example/v1/chat/completions", "the gateway's root"),
}


@pytest.mark.parametrize(("name", "value", "expected"), BAD.values(), ids=BAD)
def test_bad_value_is_reported_with_its_name_and_origin(name, value, expected):
    with pytest.raises(SettingsError) as caught:
        load(environ={get_variable(name): value})
    text = str(caught.value)
    assert text.startswith(f"{name}: expected ")
    assert f"found {value.replace('x=1', '[redacted]')!r}" in text
    assert expected in text
    assert text.endswith(" (from the environment)")


def test_every_error_has_a_line(config):
    text = 'call_timeout_s = -1\nlisten = "x"\nunknown = 1\n[log]\nlevel = 3\n'
    with pytest.raises(SettingsError) as caught:
        load(config=config(text), environ={})
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == [
        "listen",
        "call_timeout_s",
        "log.level",
        "unknown",
    ]


SECRETS = {
    "key and key file": {"OLLM_BRIDGE_UPSTREAM__API_KEY": "sesame", "OLLM_BRIDGE_UPSTREAM__API_KEY_FILE": "/k"},
    "key and another fault": {"OLLM_BRIDGE_UPSTREAM__API_KEY": "sesame", "OLLM_BRIDGE_UPSTREAM__KEEPALIVE_S": "-1"},
    "user in the URL": {"OLLM_BRIDGE_UPSTREAM__BASE_URL": "https://me:sesame@a.example"},
    "query of the URL": {"OLLM_BRIDGE_UPSTREAM__BASE_URL": "https://a.example?key=sesame"},
    "key in the place of a key file": {"OLLM_BRIDGE_TLS__KEY_FILE": "-----BEGIN\nsesame"},
    "key in the place of a list": {"OLLM_BRIDGE_UPSTREAM__FORWARD_METADATA": "a\nsesame"},
    "proxy and another fault": {
        "OLLM_BRIDGE_UPSTREAM__PROXY": "http://me:sesame@p",
        "OLLM_BRIDGE_UPSTREAM__KEEPALIVE_S": "-1",
    },
}


@pytest.mark.parametrize("environ", SECRETS.values(), ids=SECRETS)
def test_secret_in_the_environment_is_never_shown(environ):
    with pytest.raises(SettingsError) as caught:
        load(environ=environ)
    assert "sesame" not in str(caught.value)


def test_secret_of_a_wrong_type_in_a_file_is_never_shown(config):
    for text in ('[upstream]\napi_key = ["sesame"]', '[upstream]\nproxy = ["sesame"]', 'upstream = "sesame"'):
        with pytest.raises(SettingsError) as caught:
            load(config=config(text), environ={})
        assert "sesame" not in str(caught.value)


@pytest.mark.parametrize("line", ['api_key = "sesame"', 'proxy = "http://me:sesame@proxy.example:3128"'])
def test_file_with_a_secret_that_everybody_can_read_is_refused(config, line):
    path = config(f"[upstream]\n{line}")
    path.chmod(0o644)
    with pytest.raises(SettingsError, match=r"bridge\.toml must not be readable by everybody \(chmod o-r\)"):
        load(config=path, environ={})
    path.chmod(0o640)
    load(config=path, environ={})


def test_file_that_everybody_can_write_is_refused(config):
    path = config("calls_max = 1")
    path.chmod(0o666)
    with pytest.raises(SettingsError, match=r"bridge\.toml must not be writable by everybody \(chmod o-w\)"):
        load(config=path, environ={})


def test_file_that_is_missing_or_not_toml_is_reported(config, tmp_path):
    with pytest.raises(SettingsError, match=r"nowhere\.toml: cannot read this settings file: No such file"):
        load(config=tmp_path / "nowhere.toml", environ={})
    with pytest.raises(SettingsError, match=r"bridge\.toml: not valid TOML: "):
        load(config=config("listen = "), environ={})


LISTS = {
    "a list": ("UPSTREAM__FORWARD_METADATA", "x-team", '["x-team"]'),
    "a table": ("TAGS__FIXED", "team=search", '{"team": "search"}'),
}


@pytest.mark.parametrize(("variable", "text", "example"), LISTS.values(), ids=LISTS)
def test_list_or_table_in_the_environment_is_json(variable, text, example):
    with pytest.raises(SettingsError) as caught:
        load(environ={f"OLLM_BRIDGE_{variable}": text})
    assert str(caught.value) == f"OLLM_BRIDGE_{variable}: expected JSON such as {example}, found {text!r}"
