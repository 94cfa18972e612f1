"""Tests of bridge/settings/: where a setting comes from, and what a bad one is told."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from bridge.reload import api_key
from bridge.settings import Settings, SettingsError, load, setting_names, split_address
from bridge.settings.model import _SERVICE_LINK, _names, _read_environment

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


def key_of(loaded):
    read = api_key(loaded.settings.upstream)
    return read and read()


@pytest.fixture
def config(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "bridge.toml"
        path.write_text(text)
        return path

    return write


def test_file_gives_way_to_the_environment_and_both_to_flags(config):
    settings = load(config=config(FILE), flags=FLAGS, environ=ENVIRONMENT).settings
    assert settings.listen == "127.0.0.1:1"
    assert (settings.call_timeout_s, settings.drain_grace_s) == (2, 3)
    assert settings.upstream.base_url == "https://file.example"
    assert settings.upstream.idle_timeout_s == 2
    assert settings.upstream.forward_metadata == ("x-environment", "x-more")
    assert settings.upstream.proxy == "http://flag.example:1"
    assert settings.log.level == "error"
    assert settings.calls_max == 1000


def test_origin_of_every_setting_that_some_source_gave_is_told(config):
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


def test_without_a_source_there_are_the_defaults_and_no_origins():
    loaded = load(environ={})
    assert loaded.origins == {}
    assert loaded.settings == Settings()
    assert key_of(loaded) is None


def test_names_of_the_environment_are_of_any_case():
    assert load(environ={"ollm_bridge_Upstream__Base_Url": "https://a.example"}).settings.upstream.base_url == (
        "https://a.example"
    )


@pytest.mark.parametrize("name", setting_names())
def test_every_setting_has_its_variable(name):
    variable = f"OLLM_BRIDGE_{name.replace('.', '__').upper()}"
    assert _names(_read_environment({variable: "3"})) == [name]


# Bad ones

UNKNOWN = {
    "file": ("listne = 1", {}, {}, "listne"),
    "file, inside": ("[upstream]\nbase_ulr = 1", {}, {}, "upstream.base_ulr"),
    "file, a table": ("[upstraem]\nbase_url = 1", {}, {}, "upstraem"),
    "environment": ("", {"OLLM_BRIDGE_LISTNE": "1"}, {}, "OLLM_BRIDGE_LISTNE"),
    "environment, inside": ("", {"OLLM_BRIDGE_UPSTREAM__BASE_ULR": "1"}, {}, "OLLM_BRIDGE_UPSTREAM__BASE_ULR"),
    "environment, single underscore": ("", {"OLLM_BRIDGE_UPSTREAM_BASE_URL": "1"}, {}, "OLLM_BRIDGE_UPSTREAM_BASE_URL"),
    "flag": ("", {}, {"upstream": {"base_ulr": 1}}, "upstream.base_ulr"),
}


@pytest.mark.parametrize(("text", "environ", "flags", "name"), UNKNOWN.values(), ids=UNKNOWN)
def test_unknown_name_is_an_error_in_every_source(config, text, environ, flags, name):
    with pytest.raises(SettingsError) as caught:
        load(config=config(text), flags=flags, environ=environ)
    assert str(caught.value) == f"{name}: expected the name of a setting, found none of this name"


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


def test_what_kubernetes_tells_of_services_is_no_setting():
    assert load(environ=SERVICE_LINKS).origins == {}


def test_no_setting_is_named_like_what_kubernetes_tells_of_services():
    assert not [
        name for name in setting_names() if _SERVICE_LINK.fullmatch(f"OLLM_BRIDGE_{name.replace('.', '__').upper()}")
    ]


BAD = {
    "address": ("listen", "localhost", "HOST:PORT"),
    "port": ("listen", "localhost:65536", "HOST:PORT"),
    "zero seconds": ("call_timeout_s", "0", "greater than 0"),
    "not a number": ("call_timeout_s", "soon", "a valid number"),
    "nan": ("call_timeout_s", "nan", ""),
    "infinite": ("drain_grace_s", "inf", ""),
    "too many": ("calls_max", "0", "greater than or equal to 1"),
    "level": ("log.level", "loud", "'debug', 'info'"),
    "flag": ("upstream.require_finish_reason", "perhaps", "a valid boolean"),
    "scheme": ("upstream.base_url", "ftp://a.example", "a URL such as https://gateway.example"),
    "no host": ("upstream.base_url", "https://", "a URL such as https://gateway.example"),
    "query": ("upstream.base_url", "https://a.example/?x=1", "a URL without user, query or fragment"),
    "the API's path": ("upstream.base_url", "https://a.example/v1/", "the gateway's root"),
    "the whole path": ("upstream.base_url", "https://a.example/v1/chat/completions", "the gateway's root"),
}


@pytest.mark.parametrize(("name", "value", "expected"), BAD.values(), ids=BAD)
def test_bad_value_is_told_with_its_name_what_was_found_expected_and_where(name, value, expected):
    variable = f"OLLM_BRIDGE_{name.replace('.', '__').upper()}"
    with pytest.raises(SettingsError) as caught:
        load(environ={variable: value})
    text = str(caught.value)
    assert text.startswith(f"{name}: expected ")
    assert f"found {value!r}" in text
    assert expected in text
    assert text.endswith(" (from the environment)")


def test_every_fault_has_its_line(config):
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
    "key": {"OLLM_BRIDGE_UPSTREAM__API_KEY": "sesame open"},
    "key and key file": {"OLLM_BRIDGE_UPSTREAM__API_KEY": "sesame", "OLLM_BRIDGE_UPSTREAM__API_KEY_FILE": "/k"},
    "key and another fault": {"OLLM_BRIDGE_UPSTREAM__API_KEY": "sesame", "OLLM_BRIDGE_UPSTREAM__KEEPALIVE_S": "-1"},
    "user in the URL": {"OLLM_BRIDGE_UPSTREAM__BASE_URL": "https://me:sesame@a.example"},
    "proxy and another fault": {
        "OLLM_BRIDGE_UPSTREAM__PROXY": "http://me:sesame@p",
        "OLLM_BRIDGE_UPSTREAM__KEEPALIVE_S": "-1",
    },
}


@pytest.mark.parametrize("environ", SECRETS.values(), ids=SECRETS)
def test_secret_is_never_told(environ):
    with pytest.raises(SettingsError) as caught:
        key_of(load(environ=environ))
    assert "sesame" not in str(caught.value)
    assert str(caught.value).startswith("upstream")


RULES = {
    "plain text to the gateway": (
        {"BASE_URL": "http://10.0.0.1:80", "KEEPALIVE_S": "3"},
        "an https:// base_url, one at a loopback address, or plaintext = true",
        "base_url = 'http://10.0.0.1:80', keepalive_s = '3'",
    ),
    "two keys": (
        {"API_KEY": "sesame", "API_KEY_FILE": "key"},
        "api_key or api_key_file, not both",
        "api_key = set, not shown, api_key_file = 'key'",
    ),
}


@pytest.mark.parametrize(("given", "expected", "found"), RULES.values(), ids=RULES)
def test_rule_about_several_settings_tells_what_they_are_set_to(given, expected, found):
    with pytest.raises(SettingsError) as caught:
        load(environ={f"OLLM_BRIDGE_UPSTREAM__{name}": value for name, value in given.items()})
    assert str(caught.value) == f"upstream: expected {expected}, found {found}"


def test_secret_of_a_wrong_type_in_a_file_is_never_told(config):
    for text in ('[upstream]\napi_key = ["sesame"]', '[upstream]\nproxy = ["sesame"]', 'upstream = "sesame"'):
        with pytest.raises(SettingsError) as caught:
            load(config=config(text), environ={})
        assert "sesame" not in str(caught.value)


def test_secrets_do_not_show_in_the_settings_text():
    settings = Settings(upstream={"api_key": "sesame", "proxy": "http://me:sesame@p"})
    assert "sesame" not in f"{settings!r} {settings}"


def test_file_that_cannot_be_read_or_is_no_toml_is_told(config, tmp_path):
    with pytest.raises(SettingsError, match=r"nowhere\.toml: expected a readable TOML file, found: No such file"):
        load(config=tmp_path / "nowhere.toml", environ={})
    with pytest.raises(SettingsError, match=r"bridge\.toml: expected TOML, found: "):
        load(config=config("listen = "), environ={})


def test_list_in_the_environment_is_json():
    with pytest.raises(SettingsError, match="expected JSON for a list"):
        load(environ={"OLLM_BRIDGE_UPSTREAM__FORWARD_METADATA": "x-team"})


def test_settings_are_frozen():
    settings = load(environ={}).settings
    with pytest.raises(ValidationError):
        settings.calls_max = 3
    with pytest.raises(ValidationError):
        settings.upstream.keepalive_s = 3


# The key


def test_key_file_is_read_without_its_white_space(tmp_path):
    (tmp_path / "key").write_text("  sesame\n")
    (tmp_path / "key").chmod(0o600)
    environ = {"OLLM_BRIDGE_UPSTREAM__API_KEY_FILE": str(tmp_path / "key")}
    assert key_of(load(environ=environ)) == "sesame"


KEY_FILES = {"none": None, "empty": b"\n", "two words": b"two words", "binary": b"\xff\xfe", "two lines": b"a\nb"}


@pytest.mark.parametrize("content", KEY_FILES.values(), ids=KEY_FILES)
def test_key_file_that_holds_no_key_is_told_by_its_name(tmp_path, content):
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
        path.chmod(0o600)
    with pytest.raises(SettingsError, match=r"upstream\.api_key_file: expected "):
        key_of(load(environ={"OLLM_BRIDGE_UPSTREAM__API_KEY_FILE": str(path)}))


# Addresses


@pytest.mark.parametrize(
    ("address", "parts"),
    [("127.0.0.1:0", ("127.0.0.1", 0)), ("[::1]:65535", ("[::1]", 65535)), ("host:80", ("host", 80))],
)
def test_address_is_split_at_its_last_colon(address, parts):
    assert split_address(address) == parts


@pytest.mark.parametrize("address", ["", "host", "host:", ":80", "host:-1", "host:65536", "host:8o", "host:٣"])
def test_address_without_host_or_port_is_refused(address):
    with pytest.raises(ValueError, match="HOST:PORT"):
        split_address(address)


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
