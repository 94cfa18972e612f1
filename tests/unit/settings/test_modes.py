"""Tests of bridge/settings/modes.py: who else may read or write a file."""

import pytest

from bridge.settings import find_mode_fault

MODES = {
    "the owner's": (0o600, "", ""),
    "the group's": (0o660, "", ""),
    "readable by everybody": (0o644, "", "must not be readable by everybody (chmod o-r)"),
    "writable by everybody": (0o602, *("must not be writable by everybody (chmod o-w)",) * 2),
}


@pytest.mark.parametrize(("mode", "plain", "secret"), MODES.values(), ids=MODES)
def test_everybody_may_write_no_file_and_read_no_secret(tmp_path, mode, plain, secret):
    (path := tmp_path / "file").touch()
    path.chmod(mode)
    for is_secret, fault in ((False, plain), (True, secret)):
        assert find_mode_fault(path, is_secret=is_secret) == (fault and f"the file {path} {fault}")


def test_mode_of_what_is_no_file_is_for_its_reader(tmp_path):
    tmp_path.chmod(0o777)
    assert find_mode_fault(tmp_path, is_secret=True) == ""
    assert find_mode_fault(tmp_path / "nowhere", is_secret=True) == ""
