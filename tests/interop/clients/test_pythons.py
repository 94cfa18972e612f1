"""The generated modules and the Python client run with both major versions of protobuf, on every Python from 3.10 on.

`requirements.txt` has the newest libraries, `requirements-protobuf6.txt` the oldest that the modules run with. A Python
that this machine lacks is skipped.
"""

import os
import re
import tomllib
from pathlib import Path

import pytest

from tests.interop.clients import programs
from tests.interop.clients.place import start_place
from tests.kit.processes import ROOT, find_program, run_program

FOLDER = programs.CLIENTS / "python"
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
SETS = {"protobuf 6": "requirements-protobuf6.txt", "protobuf 7": "requirements.txt"}
WITHOUT_WHEELS = {("3.14", "protobuf 6")}
"""grpcio 1.72 is older than that Python, and takes minutes to build."""
PAIRS = [(python, name) for python in PYTHONS for name in SETS if (python, name) not in WITHOUT_WHEELS]

pytestmark = pytest.mark.timeout(programs.BUILD_S)


def run(*command: str | Path, **options) -> str:
    code, out, err = run_program(*command, timeout_s=programs.BUILD_S, **options)
    assert code == 0, f"{command} ended with {code}:\n{out[-2000:]}\n{err[-4000:]}"
    return out


def find_python(version: str) -> str:
    """Return a Python by PATH, or one of pyenv's, whose shims may lead nowhere."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    name = f"python{version}"
    for path in (find_program(name), *sorted(map(str, pyenv.glob(f"versions/{version}.*/bin/{name}")))):
        if path is not None and run_program(path, "-c", "").code == 0:
            return path
    if os.environ.get("REQUIRE_CLIENTS") == "1":
        pytest.fail(f"this machine has no Python {version}", pytrace=False)
    pytest.skip(f"this machine has no Python {version}")


@pytest.mark.parametrize(("python", "name"), PAIRS, ids=[f"python{python}-{name}" for python, name in PAIRS])
def test_client_runs_with_these_libraries(python, name, tmp_path):
    interpreter = find_python(python)
    uv = find_program("uv")
    own = tmp_path / "venv" / "bin" / "python"
    run(uv, "venv", "--quiet", "--python", interpreter, tmp_path / "venv")
    pip = (uv, "pip", "install", "--quiet", "--python", own)
    run(*pip, "--require-hashes", "-r", FOLDER / SETS[name])
    run(*pip, "--no-deps", ROOT / "generated")
    versions = run(own, "-c", "import sys, google.protobuf as p; print(sys.version_info[:2], p.__version__)")
    assert versions.startswith(f"({python.replace('.', ', ')}) {name[-1]}.")
    with start_place(tmp_path) as place:
        lines = programs.run(f"{own} -W error client.py", FOLDER, place.variables)
    assert lines == programs.read_expected("python")


def test_oldest_libraries_are_those_that_the_package_names():
    declared = tomllib.loads((ROOT / "generated" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    oldest = dict(re.match(r"([\w-]+)>=([\d.]+)", each).groups() for each in declared["dependencies"])
    text = (FOLDER / SETS["protobuf 6"]).read_text(encoding="utf-8")
    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)", text, re.MULTILINE))
    assert {name: re.sub(r"(\.0)+$", "", pinned[name]) for name in oldest} == {
        name: re.sub(r"(\.0)+$", "", version) for name, version in oldest.items()
    }
    assert declared["requires-python"] == f">={PYTHONS[0]}"
    assert {each.rpartition(" ")[2] for each in declared["classifiers"] if ":: 3." in each} == {*PYTHONS}
