"""The clients: their folders, their tools, and the commands of their READMEs that build and run them.

The first block of `sh` in a folder's README has three commands, one per line: to install, to generate or build, and to
run.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CLIENTS = Path(__file__).parents[2] / "clients"
NEEDS: Mapping[str, tuple[str, ...]] = {
    "python": ("python3",),
    "python-betterproto2": ("python3",),
    "go": ("go",),
    "typescript": ("node", "npm"),
    "connect": ("node", "npm"),
    "java": ("javac", "mvn"),
    "rust": ("cargo",),
}
BUILD_S = 900
RUN_S = 120

# Some tools, such as buf, are installed next to the interpreter.
PATH = os.pathsep.join((os.environ["PATH"], str(Path(sys.executable).parent)))


def find_missing(client: str) -> list[str]:
    """Return the programs that a client needs and this machine does not have."""
    return [program for program in NEEDS[client] if shutil.which(program, path=PATH) is None]


def read_commands(client: str) -> list[str]:
    """Return the three commands of a client's README."""
    page = (CLIENTS / client / "README.md").read_text(encoding="utf-8")
    block = re.search(r"^```sh\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    lines = re.sub(r"\\\n *", "", block[1]).splitlines() if block else []
    assert len(lines) == 3, f"clients/{client}/README.md: expected three commands in a block of sh, found {lines}"
    return lines


def build(client: str) -> None:
    """Run the first two commands."""
    for command in read_commands(client)[:2]:
        done = _run(command, CLIENTS / client, BUILD_S, {}, stderr=subprocess.STDOUT)
        assert done.returncode == 0, f"{client}: `{command}` ended with {done.returncode}:\n{done.stdout[-4000:]}"


def run(command: str, folder: Path, variables: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Run a client, and return its lines by case."""
    done = _run(command, folder, RUN_S, variables, stderr=subprocess.PIPE)
    assert done.returncode == 0, f"`{command}` ended with {done.returncode}:\n{done.stdout}\n{done.stderr[-4000:]}"
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    seen = {line.pop("case"): line for line in lines}
    assert len(seen) == len(lines), f"`{command}` printed a case twice:\n{done.stdout}"
    return seen


def read_expected(client: str) -> dict[str, dict[str, Any]]:
    """Return the lines that a client must print, by case. A line that names a client replaces the common line."""
    lines = sorted(_read_lines(), key=lambda line: "client" in line)
    return {line.pop("case"): line for line in lines if line.pop("client", client) == client}


def find_differences() -> set[tuple[str, str]]:
    """Return the clients and cases that have a line of their own."""
    return {(line["client"], line["case"]) for line in _read_lines() if "client" in line}


def _read_lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (CLIENTS / "expected.jsonl").read_text(encoding="utf-8").splitlines()]


def _run(command, folder, timeout_s, variables, *, stderr):
    return subprocess.run(
        ["sh", "-c", command],
        cwd=folder,
        env=os.environ | {"PATH": PATH} | dict(variables),
        stdout=subprocess.PIPE,
        stderr=stderr,
        stdin=subprocess.DEVNULL,
        timeout=timeout_s,
        check=False,
        text=True,
        encoding="utf-8",
    )
