"""A disk of 64 KiB, for programs that fill it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.process import describe_missing_namespaces

ROOT = Path(__file__).parents[3]
SMALL_DISK = 'mount -t tmpfs -o size=64k tmpfs "$1" && exec "$2" -c "$3" "$1"'


@pytest.fixture
def run_on_small_disk():
    """Return what runs a program with a small disk at a path: it must end well and say nothing."""
    if why := describe_missing_namespaces():
        pytest.skip(why)

    def run(program: str, path: Path) -> None:
        command = ("unshare", "-rm", "sh", "-c", SMALL_DISK, "sh", str(path), sys.executable, program)
        environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'generated'}"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")

    return run
