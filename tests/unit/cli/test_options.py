"""Tests of bridge/cli/options.py: the setting of each flag."""

import argparse

import pytest

from bridge.cli.defaults import UsageError
from bridge.cli.options import load_settings, settings_errors_as_usage
from bridge.settings import SettingsError

NONE = {"config": None, "listen": None, "web_listen": None, "admin_listen": None, "upstream": None}
FLAGS = {
    "none": ({}, {}),
    "all": (
        {
            "listen": "127.0.0.1:1",
            "web_listen": "127.0.0.1:3",
            "admin_listen": "127.0.0.1:2",
            "upstream": "https://a.example",
            "workers": "2",
        },
        {
            "listen": "127.0.0.1:1",
            "web_listen": "127.0.0.1:3",
            "admin_listen": "127.0.0.1:2",
            "upstream.base_url": "https://a.example",
            "workers": 2,
        },
    ),
    "workers by word": ({"workers": "auto"}, {"workers": "auto"}),
}


@pytest.mark.parametrize(("flags", "expected"), FLAGS.values(), ids=FLAGS)
def test_flag_sets_its_setting(flags, expected):
    loaded = load_settings(argparse.Namespace(**NONE | flags))
    assert {name for name, origin in loaded.origins.items() if origin == "flag"} == expected.keys()
    for name, value in expected.items():
        found = loaded.settings
        for part in name.split("."):
            found = getattr(found, part)
        assert found == value


def test_file_is_read(tmp_path):
    (tmp_path / "bridge.toml").write_text("calls_max = 7\n")
    options = argparse.Namespace(**NONE | {"config": tmp_path / "bridge.toml"})
    assert load_settings(options).settings.calls_max == 7


def test_error_of_the_settings_is_a_usage_error():
    with pytest.raises(UsageError, match="too many"), settings_errors_as_usage():
        raise SettingsError("too many")
