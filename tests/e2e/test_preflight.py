"""Whatever makes `serve` end with 2 makes `check` end with 2, and says the same of the same setting."""

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import trustme

from bridge.cli.main import main
from tests.kit.certificates import Certificates
from tests.kit.forks import run_in_environment
from tests.kit.processes import BRIDGE, ROOT, Ended, build_bridge_environment, run_program_async

FREE = "127.0.0.1:0"


class Way(NamedTuple):
    """A way to make `serve` refuse its settings, made in a folder: settings by name, and what the message begins with.

    `bind`: only a bind shows it. `config`: the text of a file. `without`: a package that is not installed.
    """

    begins: str
    make: Callable[[Path], dict[str, object]] = lambda _folder: {}
    bind: bool = False
    config: str = ""
    without: str = ""


def make_fixed(**settings: object) -> Callable[[Path], dict[str, object]]:
    return lambda _folder: settings


def write(folder: Path, content: str | bytes = "", *, mode: int = 0o600) -> Path:
    path = folder / "file"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    return path


def make_tls(folder: Path, **others: object) -> dict[str, object]:
    certificates = Certificates(folder)
    return {"tls__cert_file": certificates.cert_file, "tls__key_file": certificates.key_file} | others


def make_tls_with_key_of_another(folder: Path) -> dict[str, object]:
    other = trustme.CA().issue_cert("localhost").private_key_pem.bytes()
    return make_tls(folder, tls__key_file=write(folder, other))


def make_tls_with_open_key(folder: Path) -> dict[str, object]:
    settings = make_tls(folder)
    Path(str(settings["tls__key_file"])).chmod(0o644)
    return settings


def make_tokens(folder: Path, content: str, *, mode: int = 0o600) -> dict[str, object]:
    return {"tokens_file": write(folder, content, mode=mode), "upstream__api_key": "sk-own"}


WAYS = {
    "a name that is no setting": Way("listne: unknown setting", config='listne = "x"\n'),
    "a value out of bounds": Way("calls_max: ", make_fixed(calls_max=0)),
    "a file that is no TOML": Way("", config="listen = \n"),
    "workers that are no number": Way("workers: ", make_fixed(workers="many")),
    "no TLS off loopback": Way("listen: expected a loopback address, TLS", make_fixed(listen="0.0.0.0:0")),
    "a key for everybody": Way(
        "listen: expected a loopback address, tokens_file",
        make_fixed(listen="0.0.0.0:0", insecure="true", upstream__api_key="sk-own"),
    ),
    "a host that has no address": Way("listen: ", make_fixed(listen="nowhere.invalid:0", insecure="true")),
    "a host of another machine": Way("listen: ", make_fixed(listen="192.0.2.1:0", insecure="true")),
    "a folder that is not there": Way("listen: ", make_fixed(listen="unix:/nowhere/socket")),
    "a socket with workers": Way("listen: expected HOST:PORT", make_fixed(listen="unix:/tmp/socket", workers=2)),
    "no TLS off loopback at the web port": Way("web_listen: expected", make_fixed(web_listen="0.0.0.0:0")),
    "a web host of another machine": Way("web_listen: ", make_fixed(web_listen="192.0.2.1:0", insecure="true")),
    "an admin host that has no address": Way("admin_listen: ", make_fixed(admin_listen="nowhere.invalid:0")),
    "an admin host of another machine": Way("admin_listen: ", make_fixed(admin_listen="192.0.2.1:0")),
    "no certificate": Way("tls.cert_file: ", lambda folder: make_tls(folder, tls__cert_file=folder / "none")),
    "a certificate that is none": Way(
        "tls.cert_file", lambda folder: make_tls(folder, tls__cert_file=write(folder, "garbage"))
    ),
    "the key of another certificate": Way("tls.cert_file, tls.key_file", make_tls_with_key_of_another),
    "a key that everybody can read": Way("tls.key_file: ", make_tls_with_open_key),
    "no client authority": Way(
        "tls.client_ca_file: ", lambda folder: make_tls(folder, tls__client_ca_file=folder / "none")
    ),
    "no tokens": Way("tokens_file: ", make_fixed(tokens_file="/nowhere/tokens", upstream__api_key="sk-own")),
    "malformed tokens": Way("tokens_file: ", lambda folder: make_tokens(folder, "one two three\n")),
    "a tokens file without tokens": Way("tokens_file: ", lambda folder: make_tokens(folder, "# none\n")),
    "tokens that everybody can read": Way("tokens_file: ", lambda folder: make_tokens(folder, "a b\n", mode=0o644)),
    "tokens without a key": Way("tokens_file: ", lambda folder: {"tokens_file": write(folder, "a b\n")}),
    "no key file": Way("upstream.api_key_file: ", make_fixed(upstream__api_key_file="/nowhere/key")),
    "a key of two words": Way("upstream.api_key: ", make_fixed(upstream__api_key="two words")),
    "no authority": Way("upstream.ca_file: ", make_fixed(upstream__ca_file="/nowhere/ca.pem")),
    "an authority that is none": Way(
        "upstream.ca_file: ", lambda folder: {"upstream__ca_file": write(folder, "garbage")}
    ),
    "no certificate for the gateway": Way(
        "upstream.client_cert_file",
        make_fixed(upstream__client_cert_file="/nowhere/cert.pem", upstream__client_key_file="/nowhere/key.pem"),
    ),
    "a header that may not be forwarded": Way("upstream.", make_fixed(upstream__forward_metadata='["host"]')),
    "tracing without its extra": Way(
        "tracing.endpoint: ", make_fixed(tracing__endpoint="http://127.0.0.1:1"), without="opentelemetry"
    ),
    "a port that is taken": Way("listen: ", bind=True),
    "a port that is taken, with workers": Way("listen: ", make_fixed(workers=2), bind=True),
    "an admin port that is taken": Way("admin_listen: ", bind=True),
    "a web port that is taken": Way("web_listen: ", bind=True),
    "a socket that is taken": Way("listen: ", bind=True),
}


@contextmanager
def take_address(way: str, folder: Path) -> Iterator[dict[str, object]]:
    """Take the address that a way needs to be taken, and yield the setting of it."""
    with ExitStack() as stack:
        if way == "a socket that is taken":
            taken = stack.enter_context(socket.socket(socket.AF_UNIX))
            taken.bind(str(folder / "taken"))
            taken.listen()
            yield {"listen": f"unix:{folder / 'taken'}"}
            return
        port = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        names = {"an admin": "admin_listen", "a web": "web_listen"}
        yield {next((name for words, name in names.items() if way.startswith(words)), "listen"): f"127.0.0.1:{port}"}


@pytest.mark.parametrize("name", WAYS)
async def test_what_ends_serve_with_2_ends_check_with_2(name, tmp_path, monkeypatch, capfd):
    way = WAYS[name]
    arguments = ()
    if way.config:
        (tmp_path / "bridge.toml").write_text(way.config)
        arguments = ("--config", str(tmp_path / "bridge.toml"))
    check = ("check", "--bind") if way.bind else ("check",)
    with ExitStack() as stack:
        settings = {"listen": FREE} | way.make(tmp_path)
        if way.bind:
            settings |= stack.enter_context(take_address(name, tmp_path))
        environment = build_bridge_environment("http://127.0.0.1:1", **settings)
        environment["PYTHONPATH"] = f"{ROOT}:{ROOT / 'generated'}"
        if way.without:
            (tmp_path / way.without).mkdir()
            (tmp_path / way.without / "__init__.py").write_text("raise ImportError\n")
            environment["PYTHONPATH"] = f"{tmp_path}:{environment['PYTHONPATH']}"
        if way.without:
            serving = asyncio.create_task(run_program_async(*BRIDGE, "serve", *arguments, environment=environment))
            checked = await run_program_async(*BRIDGE, *check, *arguments, environment=environment)
        else:
            serving = asyncio.create_task(run_in_environment("serve", *arguments, environment=environment))
            checked = await check_here([*check, *arguments], environment, monkeypatch, capfd)
        serve = await serving
    assert (serve.code, serve.out) == (2, "")
    said = next(line for line in serve.err.splitlines() if not is_log_line(line))
    assert said.startswith(way.begins)
    assert checked.code == 2
    assert said in checked.out + checked.err or way.begins in checked.out


async def check_here(arguments: list[str], environment: dict[str, str], monkeypatch, capfd) -> Ended:
    """Run `check` in this process, which takes a second less."""
    for name in [name for name in os.environ if name.startswith("OLLM_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        if name.startswith("OLLM_"):
            monkeypatch.setenv(name, value)
    capfd.readouterr()
    code = await asyncio.to_thread(main, arguments)
    return Ended(code, *capfd.readouterr())


def is_log_line(line: str) -> bool:
    """Whether a line is the log's or the core's, and not the message that the process ends with."""
    return line.startswith(("{", "E0", "E1", "I0", "W0", "WARNING"))


async def test_what_serves_is_fit_for_check_and_leaves_nothing(emulator, tmp_path):
    certificates = Certificates(tmp_path)
    settings = {
        "listen": f"unix:{tmp_path / 'socket'}",
        "tls__cert_file": certificates.cert_file,
        "tls__key_file": certificates.key_file,
        "tracing__endpoint": "http://127.0.0.1:1",
    }
    before = sorted(tmp_path.iterdir())
    environment = build_bridge_environment(emulator.url, **settings)
    for bind in ((), ("--bind",)):
        code, out, err = await run_program_async(*BRIDGE, "check", *bind, environment=environment)
        assert (code, err) == (0, "")
        assert "\ntls.cert_file: good until " in out
        assert sorted(tmp_path.iterdir()) == before
