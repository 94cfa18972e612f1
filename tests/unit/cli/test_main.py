"""Tests of bridge/cli/main.py: arguments, exit codes, and an output that can't be written."""

import io
import os
import signal
import sys
from pathlib import Path

import pytest

from bridge import __version__
from bridge.cli.main import main, print_address
from bridge.emulator import SCENARIOS
from tests.kit.processes import run_program


@pytest.fixture(autouse=True)
def _remove_settings(monkeypatch):
    for name in [name for name in os.environ if name.startswith("OLLM_")]:
        monkeypatch.delenv(name)


def test_version_is_printed(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"ollm-bridge {__version__}\n"


def test_help_of_emulate_lists_every_scenario(capsys):
    with pytest.raises(SystemExit):
        main(["emulate", "--help"])
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in SCENARIOS)


@pytest.mark.parametrize("arguments", [[], ["fly"], ["serve", "--no-such-flag"]], ids=" ".join)
def test_arguments_that_cannot_be_used_end_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: " in capsys.readouterr().err


UNUSABLE = {
    "an address": (["serve", "--listen", "here"], "listen: expected HOST:PORT"),
    "a URL": (["serve", "--upstream", "https://h/v1"], "upstream.base_url: expected the gateway's root"),
    "workers": (["serve", "--workers", "many"], "workers: expected a whole number or 'auto', found 'many'"),
    "a file": (["check", "--config", "/no/such.toml"], "/no/such.toml: cannot read this settings file"),
    "a scenario": (["emulate", "--listen", "127.0.0.1:0", "--scenario", "nope"], ""),
    "an emulator's address": (["emulate", "--listen", "here"], "expected HOST:PORT"),
    "an option without a value": (["chat", "-o", "temperature", "Hi"], "-o: expected KEY=VALUE, found 'temperature'"),
    "an option without a key": (["chat", "-o", "=1", "Hi"], "-o: expected KEY=VALUE, found '=1'"),
}


@pytest.mark.parametrize(("arguments", "message"), UNUSABLE.values(), ids=UNUSABLE)
def test_values_that_cannot_be_used_end_with_2_and_one_message(arguments, message, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_unknown_variable_ends_with_2(monkeypatch, capsys):
    monkeypatch.setenv("OLLM_BRIDGE_LISTNE", "sesame")
    assert main(["check"]) == 2
    assert capsys.readouterr().err == "OLLM_BRIDGE_LISTNE: unknown setting (did you mean OLLM_BRIDGE_LISTEN?)\n"


def test_program_gets_the_address_when_connections_are_accepted():
    addresses = []

    def on_ready(address: str, about: str) -> None:
        addresses.append(address)
        assert about == f"ollm-bridge {__version__}, an emulated gateway"
        os.kill(os.getpid(), signal.SIGTERM)

    assert main(["emulate", "--listen", "127.0.0.1:0"], on_ready=on_ready) == 0
    assert addresses[0].startswith("127.0.0.1:")


def test_line_that_programs_read_has_the_address(capsys):
    print_address("127.0.0.1:1", "ollm-bridge 1.0, upstream unix:/a b")
    print_address("127.0.0.1:1")
    assert capsys.readouterr().out.splitlines() == [
        "listening on 127.0.0.1:1 (ollm-bridge 1.0, upstream unix:/a b)",
        "listening on 127.0.0.1:1",
    ]


CHECK = ["check", "--upstream", "http://127.0.0.1:1"]


def test_closed_output_pipe_ends_with_1_and_no_message(monkeypatch, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert main(CHECK) == 1
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_full_disk_ends_with_1_and_a_message(monkeypatch, capsys):
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(CHECK) == 1
    assert capsys.readouterr().err == "cannot write the output: No space left on device\n"


def test_text_that_the_terminal_cannot_show_is_escaped(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setenv("OLLM_BRIDGE_TAGS__IDENTITY", "é")
    assert main(CHECK) == 1
    assert b'tags.identity     = "\\xe9"  (environment)\n' in written.getvalue()


LEAN = """
import sys
from bridge.cli import {module}
assert not {{"grpc", "pydantic", "aiohttp", "google.protobuf"}} & sys.modules.keys(), sorted(sys.modules)
"""


@pytest.mark.parametrize("module", ["main", "healthcheck"])
def test_healthcheck_imports_nothing_heavy(module):
    assert run_program(sys.executable, "-c", LEAN.format(module=module)) == (0, "", "")
