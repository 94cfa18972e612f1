"""The clients: their folders, their tools, and the commands of their READMEs that build and run them.

The first block of `sh` in a folder's README has three commands, one per line: to install, to generate or build, and to
run.
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tests.clients.vectors import decode_response
from tests.kit.processes import Ended, clean_environment, run_program
from tests.kit.vectors import read_client_vectors

CLIENTS = Path(__file__).parents[3] / "clients"
NEEDS: Mapping[str, tuple[str, ...]] = {
    "python": ("python3",),
    "python-betterproto2": ("python3",),
    "go": ("go",),
    "typescript": ("node", "npm"),
    "connect": ("node", "npm"),
    "java": ("javac", "mvn"),
    "rust": ("cargo",),
}
KITS = {"connect", "go", "java", "python", "rust", "typescript"}
"""Clients that have a kit: they print its cases too."""
KIT_CASES = {"accumulate", "failure"}
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


@cache
def build(client: str) -> None:
    """Run the first two commands, once."""
    for command in read_commands(client)[:2]:
        code, out, err = _run(command, CLIENTS / client, BUILD_S, {})
        assert code == 0, f"{client}: `{command}` ended with {code}:\n{out[-4000:]}\n{err[-4000:]}"


def run(command: str, folder: Path, variables: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Run a client, and return its lines by case."""
    code, out, err = _run(command, folder, RUN_S, variables)
    assert code == 0, f"`{command}` ended with {code}:\n{out}\n{err[-4000:]}"
    lines = [json.loads(line) for line in out.splitlines()]
    seen = {line.pop("case"): _decode_responses(line) for line in lines}
    assert len(seen) == len(lines), f"`{command}` printed a case twice:\n{out}"
    return seen


def _decode_responses(line: dict[str, Any]) -> dict[str, Any]:
    """Return a line with its responses as JSON: clients print their bytes in base64."""
    responses = line.get("responses")
    return (
        line if responses is None else line | {"responses": {key: decode_response(responses[key]) for key in responses}}
    )


def read_expected(client: str) -> dict[str, dict[str, Any]]:
    """Return the lines that a client must print, by case. A line that names a client replaces the common line.

    The vectors have two of the lines of kits. A client without a kit has none of them; "" stands for no client.
    """
    lines = sorted(_read_lines(), key=lambda line: "client" in line)
    found = {line.pop("case"): line for line in lines if line.pop("client", client) == client}
    found["accumulate"] = {"responses": {each["name"]: each["response"] for each in read_client_vectors("accumulate")}}
    found["failure"] = {"failures": {each["name"]: each["failure"] for each in read_client_vectors("failure")}}
    return {case: line for case, line in found.items() if client in KITS | {""} or case not in KIT_CASES}


def find_differences() -> set[tuple[str, str]]:
    """Return the clients and cases that have a line of their own."""
    return {(line["client"], line["case"]) for line in _read_lines() if "client" in line}


def _read_lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (CLIENTS / "expected.jsonl").read_text(encoding="utf-8").splitlines()]


def _run(command: str, folder: Path, timeout_s: float, variables: Mapping[str, str]) -> Ended:
    environment = clean_environment() | {"PATH": PATH} | dict(variables)
    return run_program("sh", "-c", command, cwd=folder, environment=environment, timeout_s=timeout_s)
