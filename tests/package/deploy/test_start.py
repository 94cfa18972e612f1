"""The real bridge with the rendered settings and the container's command; then the probes, and the drain."""

import re
import signal
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.kit.processes import Program, find_free_port, run_program, start_program
from tests.package.deploy.checkout import BRIDGE, ENVIRONMENT, WAIT_S
from tests.package.deploy.objects import get_container, get_pod, render, render_hooks

pytestmark = pytest.mark.timeout(240)


def start_bridge(*arguments: str | Path, log: Path, **environment: str) -> AbstractContextManager[Program]:
    return start_program(BRIDGE, *arguments, log=log / "bridge.log", environment=ENVIRONMENT | environment)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with start_bridge("emulate", "--listen", "127.0.0.1:0", log=tmp_path_factory.mktemp("gateway")) as program:
        yield f"http://{program.address}"


def write_volumes(values: dict[str, Any], place: Path, admin: str) -> Path:
    """Write the pod's volumes under a folder, and return the settings' file, whose paths lead there."""
    key = place / "run" / "key" / "api-key"
    key.parent.mkdir(parents=True)
    key.write_text("sk-ollm-not-a-key\n", encoding="utf-8")
    key.chmod(0o440)
    tls = place / "run" / "tls"
    tls.mkdir()
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.cert_chain_pems[0].write_to_path(tls / "tls.crt")
    certificate.private_key_pem.write_to_path(tls / "tls.key")
    authority.cert_pem.write_to_path(tls / "ca.crt")
    (tls / "tls.key").chmod(0o440)
    text = render(values)["ConfigMap", "ollm-bridge"]["data"]["bridge.toml"]
    config = place / "bridge.toml"
    config.write_text(text.replace('"/run/', f'"{place}/run/').replace("0.0.0.0:9464", admin), encoding="utf-8")
    return config


def build_command(values: dict[str, Any], config: Path, upstream: str) -> list[str]:
    """Return the container's arguments for this machine: its own files, loopback, the emulated gateway."""
    arguments = get_container(values)["args"]
    assert arguments[0] == "serve"
    mapped = {"/etc/ollm-bridge/bridge.toml": str(config), "0.0.0.0:50051": "127.0.0.1:0"}
    assert mapped.keys() <= set(arguments)
    return [*(mapped.get(each, each) for each in arguments), "--upstream", upstream]


VARIANTS = {
    "plain": {},
    "mutual TLS": {"tls": {"requireClientCertificate": True}},
    "istio": {"mesh": "istio"},
    "linkerd": {"mesh": "linkerd"},
    "callers' keys": {"mesh": "istio", "apiKey": {"secretName": ""}},
    "istio with callers": {"mesh": "istio", "callerIdentity": True},
    "linkerd with callers": {"mesh": "linkerd", "callerIdentity": True},
    "tags, workers": {"mesh": "istio", "config": {"workers": 2, "tags": {"fixed": {"team": 'a "b" ü <c>'}}}},
}


@pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS)
def test_bridge_accepts_the_rendered_settings(values, gateway, tmp_path):
    config = write_volumes(values, tmp_path, "0.0.0.0:9464")
    code, out, err = run_program(BRIDGE, "check", "--config", config, "--upstream", gateway, environment=ENVIRONMENT)
    assert code == 0, out + err
    from_file = set(re.findall(r"^(\S+) += .*\(file\)$", out, re.MULTILINE))
    assert {"admin_listen", "calls_max", "drain_delay_s", "drain_grace_s", "workers", "connections.age_s"} <= from_file
    assert ("insecure" in from_file) == bool(values.get("mesh"))
    assert ("tls.cert_file" in from_file) == (not values.get("mesh"))


@pytest.mark.parametrize("name", ["plain", "istio", "tags, workers"])
def test_container_starts_passes_its_probes_and_drains_in_time(name, gateway, tmp_path):
    values = VARIANTS[name]
    admin = f"127.0.0.1:{find_free_port()}"
    config = write_volumes(values, tmp_path, admin)
    probes = read_probes(values, admin)
    command = build_command(values, config, gateway)
    with start_bridge(*command, log=tmp_path, OLLM_BRIDGE_DRAIN_DELAY_S="2") as program:
        assert {name: probe() for name, probe in probes.items()} == {"startup": 200, "readiness": 200, "liveness": 200}
        if values.get("mesh"):
            assert chat(program.address) == 0
        program.process.send_signal(signal.SIGTERM)
        wait_for(lambda: probes["readiness"]() == 503)
        assert probes["liveness"]() == 200
        assert program.process.wait(get_pod(values)["spec"]["terminationGracePeriodSeconds"]) == 0


def read_probes(values: dict[str, Any], admin: str) -> dict[str, Callable[[], int]]:
    container = get_container(values)
    names = {each["name"]: each["containerPort"] for each in container["ports"]}
    probes = {}
    for name in ("startup", "readiness", "liveness"):
        get = container[f"{name}Probe"]["httpGet"]
        assert names[get["port"]] == 9464
        probes[name] = lambda path=get["path"]: get_status(f"http://{admin}{path}")
    return probes


def get_status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=WAIT_S) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def chat(address: str) -> int:
    return run_program(BRIDGE, "chat", "--address", address, "--timeout", "10", "hello", environment=ENVIRONMENT).code


def wait_for(fact: Callable[[], bool]) -> None:
    until = time.monotonic() + WAIT_S
    while not fact():
        assert time.monotonic() < until, f"not true within {WAIT_S} s"
        time.sleep(0.02)


def test_plain_container_serves_tls_and_nothing_in_the_clear(gateway, tmp_path):
    config = write_volumes({}, tmp_path, f"127.0.0.1:{find_free_port()}")
    with start_bridge(*build_command({}, config, gateway), log=tmp_path) as program:
        host, _, port = program.address.rpartition(":")
        context = ssl.create_default_context(cafile=tmp_path / "run" / "tls" / "ca.crt")
        context.set_alpn_protocols(["h2"])
        with (
            socket.create_connection((host, int(port)), WAIT_S) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secured,
        ):
            assert secured.selected_alpn_protocol() == "h2"
        assert chat(f"{host}:{port}") != 0


def run_install_test(values, place, program, admin, **environment):
    """Run the script of `helm test` as its pod does."""
    (pod,) = render_hooks(values).values()
    (container,) = pod["spec"]["containers"]
    python, *arguments = container["command"]
    assert python == "python"
    mounted = {each["name"]: each["value"] for each in container["env"]}
    own = {"ADMIN": admin, "CALLS": program.address.replace("127.0.0.1", "localhost"), "WAIT_S": "0"}
    assert mounted.keys() - {"SERVER_NAME"} <= {*own, "KIND"}
    own["CA_FILE"] = str(place / "run" / "tls" / "ca.crt")
    return run_program(BRIDGE.with_name("python"), *arguments, environment=ENVIRONMENT | mounted | own | environment)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("plain", r"localhost:\d+: SERVING"),
        ("mutual TLS", r"localhost:\d+: not asked, since callers need a certificate"),
        ("istio", r"localhost:\d+: SERVING"),
    ],
)
def test_helm_test_asks_the_bridge_and_fails_without_it(name, said, gateway, tmp_path):
    values = VARIANTS[name]
    admin = f"127.0.0.1:{find_free_port()}"
    config = write_volumes(values, tmp_path, admin)
    with start_bridge(*build_command(values, config, gateway), log=tmp_path) as program:
        code, out, err = run_install_test(values, tmp_path, program, admin)
        assert code == 0, err
        assert re.fullmatch(rf"{admin}: SERVING\n{said}\n", out)
        if name == "plain":
            code, out, err = run_install_test(values, tmp_path, program, admin, SERVER_NAME="other.example")
            assert code == 1
            code, out, err = run_install_test(values, tmp_path, program, admin, CA_FILE="/none")
            assert code == 0, err
            assert "speaks TLS; its certificate is NOT CHECKED" in out
    code, out, err = run_install_test(values, tmp_path, program, admin)
    assert (code, out) == (1, "")
    assert err.startswith("check_admin_port: ")


def test_pod_has_no_service_links_and_the_bridge_would_ignore_them(gateway, tmp_path):
    values = {"mesh": "istio"}
    assert get_pod(values)["spec"]["enableServiceLinks"] is False
    config = write_volumes(values, tmp_path, f"127.0.0.1:{find_free_port()}")
    command = build_command(values, config, gateway)
    with start_bridge(*command, log=tmp_path, OLLM_BRIDGE_PORT="tcp://10.0.0.1:50051") as program:
        assert chat(program.address) == 0
