"""A disk of 64 KiB, for programs that fill it."""

import sys
from pathlib import Path

import pytest

from tests.kit.processes import build_source_environment, describe_missing_namespaces, run_program

SMALL_DISK = 'mount -t tmpfs -o size=64k tmpfs "$1" && exec "$2" -c "$3" "$1"'


@pytest.fixture
def run_on_small_disk():
    """Return what runs a program with a small disk at a path: it must end well and say nothing."""
    if why := describe_missing_namespaces():
        pytest.skip(why)

    def run(program: str, path: Path) -> None:
        command = ("unshare", "-rm", "sh", "-c", SMALL_DISK, "sh", str(path), sys.executable, program)
        code, _, errors = run_program(*command, environment=build_source_environment())
        assert (code, errors) == (0, "")

    return run
