"""The licences of what the image installs: of Linux' packages alone, and none that nobody has accepted."""

import pytest

from docs import licences

HASH = " \\\n    --hash=sha256:00\n    # via ollm-bridge (pyproject.toml)\n"


def lock(*lines):
    return "".join(line + HASH for line in lines)


def test_package_of_the_image_has_its_version_and_licence():
    assert licences.render_licences(lock("h11==0.16.0", "orjson==3.13.0"))[2:] == [
        "| h11 | 0.16.0 | MIT |",
        "| orjson | 3.13.0 | MPL-2.0 AND (Apache-2.0 OR MIT) |",
    ]


def test_package_of_another_platform_is_left_out():
    marked = ["uvloop==0.23.0 ; sys_platform != 'win32'", "none-such==1.0 ; sys_platform == 'emscripten'"]
    assert licences.render_licences(lock(*marked))[2:] == ["| uvloop | 0.23.0 | MIT |"]


def test_licence_that_nobody_has_accepted_stops_the_build(monkeypatch):
    monkeypatch.setattr(licences, "ACCEPTED", {"Apache-2.0"})
    with pytest.raises(ValueError, match=r"h11 0\.16\.0: expected a licence of .*, found MIT"):
        licences.render_licences(lock("h11==0.16.0"))
    assert licences.render_licences(lock("grpcio==1.83.2"))[2:]
