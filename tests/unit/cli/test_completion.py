"""Tests of bridge/cli/completion.py: each shell takes what it prints, and completes commands, flags and files by it."""

import shutil
import sys
from pathlib import Path

import pytest

from bridge.cli.arguments import build_parser
from bridge.cli.completion import run
from bridge.cli.defaults import SHELLS
from tests.kit.processes import run_program

ROOT = Path(__file__).parents[3]
CASES = {
    "ollm-bridge ": {"serve", "check", "chat", "emulate", "healthcheck", "completion", "demo"},
    "ollm-bridge ch": {"check", "chat"},
    "ollm-bridge serve --co": {"--config"},
    "ollm-bridge serve --workers 2 --ad": {"--admin-listen"},
    "ollm-bridge chat --ca-file pyproj": {"pyproject.toml"},
    "ollm-bridge completion ": set(SHELLS),
}
BASH = """
COMP_WORDS=($1); [[ $1 == *' ' ]] && COMP_WORDS+=(''); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_shtab_ollm_bridge; printf '%s\\n' "${COMPREPLY[@]}"
"""


def find_shell(name: str) -> str:
    return shutil.which(name) or pytest.skip(f"{name} is not installed")


def show(*arguments: str, cwd: Path = ROOT) -> str:
    code, out, err = run_program(*arguments, cwd=cwd)
    assert (code, err) == (0, "")
    return out


@pytest.mark.parametrize("line", CASES)
def test_bash_completes(line):
    program = f'eval "$({sys.executable} -m bridge completion bash)"{BASH}'
    assert set(show(find_shell("bash"), "--norc", "-c", program, "bash", line).splitlines()) == CASES[line]


@pytest.mark.parametrize("line", CASES)
def test_fish_completes(line):
    program = f"{sys.executable} -m bridge completion fish | source; complete -C $argv[1]"
    found = show(find_shell("fish"), "--no-config", "-c", program, line).splitlines()
    assert {each.partition("\t")[0] for each in found} == CASES[line]


def test_zsh_has_a_completion_of_the_command():
    program = f'autoload -Uz compinit; compinit -u -D; eval "$({sys.executable} -m bridge completion zsh)"'
    assert show(find_shell("zsh"), "-fc", f"{program}; echo $_comps[ollm-bridge]") == "_shtab_ollm_bridge\n"


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_has_every_flag(shell, capsys):
    assert run(build_parser().parse_args(["completion", shell])) == 0
    text = capsys.readouterr().out
    assert all(flag.lstrip("-") in text for flag in ("--web-listen", "--admin-listen", "--server-name", "--no-stream"))
