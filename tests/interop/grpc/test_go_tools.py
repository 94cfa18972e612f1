"""A machine without Go skips what needs it, and says so; with REQUIRE_GO=1 it fails."""

import pytest

from tests.kit import go_tools


@pytest.mark.parametrize(("required", "outcome"), [("", pytest.skip.Exception), ("1", pytest.fail.Exception)])
def test_missing_go_is_named(required, outcome, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("REQUIRE_GO", required)
    with pytest.raises(outcome, match=r"this machine has no `go` to build github\.com/summerwind/h2spec"):
        go_tools.build(go_tools.H2SPEC)
