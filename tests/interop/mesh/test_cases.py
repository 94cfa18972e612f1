"""Every case of clients/CASES.md through Envoy, by the Python client; TLS as deploy/envoy/README.md has it."""

import asyncio
import contextlib
import re
import sys

import pytest
import trustme

from tests.interop.clients import programs
from tests.interop.clients.upstream import CHECKS
from tests.kit.bridges import start_bridge_process
from tests.kit.envoy import CONFIGURATION, get_cluster, get_listener, read_yaml, run_envoy


def issue_certificates(folder):
    """Issue certificates of one authority for a server and a client; return the client's variables."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.crt")
    for name, identity in (("server", "localhost"), ("client", "client.example")):
        certificate = authority.issue_cert(identity)
        certificate.cert_chain_pems[0].write_to_path(folder / f"{name}.crt")
        (folder / f"{name}.key").touch(mode=0o600)
        certificate.private_key_pem.write_to_path(folder / f"{name}.key")
    files = {"CA_FILE": "ca.crt", "CERT_FILE": "client.crt", "KEY_FILE": "client.key"}
    return {variable: str(folder / name) for variable, name in files.items()}


def read_sockets(folder):
    """Yield the README's transport sockets, for callers and for the bridges, with a folder's certificates."""
    page = CONFIGURATION.with_name("README.md").read_text(encoding="utf-8")
    page = page.replace("/etc/envoy/tls", str(folder)).replace("bridge.example", "localhost")
    for number, block in enumerate(re.findall(r"^```yaml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)):
        path = folder / f"socket{number}.yaml"
        path.write_text(block)
        yield read_yaml(path)["transport_socket"]


def secure(folder, *, mutual):
    """Return an edit for TLS on both sides; the bridge always requires a certificate, Envoy only if `mutual`."""

    def edit(configuration):
        downstream, upstream = read_sockets(folder)
        if not mutual:
            del downstream["typed_config"]["require_client_certificate"]
            del downstream["typed_config"]["common_tls_context"]["validation_context"]
        get_listener(configuration)["filter_chains"][0]["transport_socket"] = downstream
        get_cluster(configuration)["transport_socket"] = upstream

    return edit


@pytest.mark.timeout(180)
async def test_every_case(served_bridge, emulator, tmp_path):
    folders = {name: tmp_path / name for name in ("files", "plain", "tls", "mtls")}
    for folder in folders.values():
        folder.mkdir()
    files = folders["files"]
    variables = issue_certificates(files)
    server = {"tls__cert_file": files / "server.crt", "tls__key_file": files / "server.key"}
    async with contextlib.AsyncExitStack() as stack:
        behind_tls = await stack.enter_async_context(_serve_with_tls(emulator, files, server))
        plain = await stack.enter_async_context(run_envoy(folders["plain"], served_bridge.address))
        tls, mtls = [
            await stack.enter_async_context(
                run_envoy(folders[name], behind_tls.address, edit=secure(files, mutual=name == "mtls"))
            )
            for name in ("tls", "mtls")
        ]
        variables |= {
            "BRIDGE_ADDRESS": plain.address,
            "BRIDGE_TLS_ADDRESS": tls.address.replace("127.0.0.1", "localhost"),
            "BRIDGE_MTLS_ADDRESS": mtls.address.replace("127.0.0.1", "localhost"),
        }
        command = f"{sys.executable} client.py"
        seen = await asyncio.to_thread(programs.run, command, programs.CLIENTS / "python", variables)
    expected = programs.read_expected("python")
    assert seen.keys() == expected.keys()
    for case, line in expected.items():
        assert seen[case] == line, case
    exchanges = [exchange.record() for exchange in emulator.exchanges]
    for check in CHECKS.values():
        check(exchanges)


def _serve_with_tls(emulator, files, server):
    return start_bridge_process(emulator, **server, tls__client_ca_file=files / "ca.crt")
