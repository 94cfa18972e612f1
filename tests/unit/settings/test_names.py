"""Tests of bridge/settings/names.py: which settings there are, and of which kind."""

from bridge.settings.names import is_list, is_path, is_secret, is_table, setting_names


def test_kind_of_a_setting_is_known_by_its_name():
    names = setting_names()
    assert {name for name in names if is_secret(name)} == {"upstream.api_key", "upstream.proxy"}
    assert {name for name in names if is_table(name)} == {"tags.fixed", "tags.metadata"}
    assert {"upstream.forward_metadata", "tls.allowed_identities"} <= {name for name in names if is_list(name)}
    assert {name for name in names if is_path(name)} == {name for name in names if name.endswith("_file")}
