"""Tests of bridge/server/own_key.py: the bridge's own key, and what becomes of calls when its file is gone."""

import pytest

from bridge.core.errors import BridgeError
from bridge.server.own_key import make_key_reader
from bridge.settings import SettingsError, UpstreamSettings
from tests.kit.waiting import eventually


def read_key(**upstream) -> str | None:
    read = make_key_reader(UpstreamSettings(**upstream))
    return read and read()


def write_key(path, content: bytes):
    path.write_bytes(content)
    path.chmod(0o600)
    return path


def test_key_is_that_of_the_setting_or_the_file_or_none(tmp_path):
    assert read_key() is None
    assert read_key(api_key="sesame") == "sesame"
    assert read_key(api_key_file=write_key(tmp_path / "key", b"  sesame\n")) == "sesame"


KEYS = {"two words": b"two words", "binary": b"\xff\xfe", "two lines": b"a\nb"}


@pytest.mark.parametrize("content", KEYS.values(), ids=KEYS)
def test_key_that_is_not_one_word_of_ascii_is_an_error_that_does_not_show_it(tmp_path, content):
    with pytest.raises(SettingsError) as caught:
        read_key(api_key_file=write_key(tmp_path / "key", content))
    message = "the key must be printable ASCII without spaces (value not shown)"
    assert str(caught.value) == f"upstream.api_key_file: {message}"
    with pytest.raises(SettingsError) as caught:
        read_key(api_key=content.decode("latin-1"))
    assert str(caught.value) == f"upstream.api_key: {message}"


@pytest.mark.parametrize("content", [b"", b" \n"])
def test_empty_key_is_called_empty(tmp_path, content):
    with pytest.raises(SettingsError, match=r"^upstream\.api_key_file: the key is empty$"):
        read_key(api_key_file=write_key(tmp_path / "key", content))


async def test_key_whose_file_is_gone_for_too_long_fails_calls(tmp_path):
    path = write_key(tmp_path / "key", b"sesame\n")
    read = make_key_reader(UpstreamSettings(api_key_file=path), grace_s=0.01)
    path.unlink()
    failures = []

    def fails() -> bool:
        try:
            read()
        except BridgeError as error:
            failures.append(error)
        return bool(failures)

    await eventually(fails)
    assert (failures[0].code.name, failures[0].reason_name) == ("INTERNAL", "CREDENTIALS_REJECTED")
    assert failures[0].message.startswith("the bridge has no key of its own: upstream.api_key_file can't be used")
