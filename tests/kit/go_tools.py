"""Programs in Go that others wrote, to speak to the bridge or to judge it: built once with the `go` of the machine.

They lie in a folder of the user's cache, outside of the project. Each is pinned to a version.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kit.processes import run_joined, run_program

__all__ = ["BUILD_S", "CONNECT_CONFORMANCE", "GHZ", "H2SPEC", "INTEROP_CLIENT", "RUN_S", "Tool", "build", "run"]

BUILD_S = 600
RUN_S = 500


@dataclass(frozen=True)
class Tool:
    """A program: its package in Go, and the version."""

    package: str
    version: str

    @property
    def path(self) -> Path:
        """Where the program lies once it is built."""
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(cache) / "ollm-bridge" / "tools" / self.version / self.package.rpartition("/")[2]


INTEROP_CLIENT = Tool("google.golang.org/grpc/interop/client", "v1.85.0")
CONNECT_CONFORMANCE = Tool("connectrpc.com/conformance/cmd/connectconformance", "v1.0.7")
H2SPEC = Tool("github.com/summerwind/h2spec/cmd/h2spec", "v2.2.1+incompatible")
GHZ = Tool("github.com/bojand/ghz/cmd/ghz", "v0.120.0")


def build(tool: Tool) -> None:
    """Build a program unless it is there. Skips the test if there is no Go; with REQUIRE_GO=1 it fails then."""
    if tool.path.exists():
        return
    go = shutil.which("go")
    if go is None:
        reason = f"this machine has no `go` to build {tool.package} with"
        if os.environ.get("REQUIRE_GO") == "1":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    command = [go, "install", f"{tool.package}@{tool.version}"]
    environment = os.environ | {"GOBIN": str(tool.path.parent)}
    done = run_program(*command, environment=environment, timeout_s=BUILD_S)
    assert done.code == 0, f"`{' '.join(command)}` ended with {done.code}:\n{done.err[-4000:]}"


async def run(tool: Tool, *arguments: str | Path, timeout_s: float = RUN_S) -> tuple[int, str]:
    """Run a program in the project's folder; return its exit code, and all that it prints."""
    return await run_joined(tool.path, *arguments, timeout_s=timeout_s, environment=os.environ)
