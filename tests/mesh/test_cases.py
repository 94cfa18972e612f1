"""Every case of clients/CASES.md through Envoy, by the Python client; TLS as deploy/envoy/README.md has it."""

import asyncio
import contextlib
import re
import sys

import pytest
import trustme

from tests.clients import programs
from tests.clients.upstream import SAW
from tests.e2e.process import served
from tests.mesh.envoy import CONFIGURATION, cluster, listener, read_yaml, running_envoy


def issued(folder):
    """Make an authority, and certificates of it for a server and a client; give what the client must be told."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.crt")
    for name, identity in (("server", "localhost"), ("client", "client.example")):
        certificate = authority.issue_cert(identity)
        certificate.cert_chain_pems[0].write_to_path(folder / f"{name}.crt")
        (folder / f"{name}.key").touch(mode=0o600)
        certificate.private_key_pem.write_to_path(folder / f"{name}.key")
    files = {"CA_FILE": "ca.crt", "CERT_FILE": "client.crt", "KEY_FILE": "client.key"}
    return {variable: str(folder / name) for variable, name in files.items()}


def sockets(folder):
    """Give the README's transport sockets, towards callers and towards the bridges, with a folder's certificates."""
    page = CONFIGURATION.with_name("README.md").read_text(encoding="utf-8")
    page = page.replace("/etc/envoy/tls", str(folder)).replace("bridge.example", "localhost")
    for number, block in enumerate(re.findall(r"^```yaml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)):
        path = folder / f"socket{number}.yaml"
        path.write_text(block)
        yield read_yaml(path)["transport_socket"]


def secured(folder, *, mutual):
    """Give an edit for TLS on both sides; the bridge always asks for a certificate, Envoy only where it is `mutual`."""

    def edit(configuration):
        downstream, upstream = sockets(folder)
        if not mutual:
            del downstream["typed_config"]["require_client_certificate"]
            del downstream["typed_config"]["common_tls_context"]["validation_context"]
        listener(configuration)["filter_chains"][0]["transport_socket"] = downstream
        cluster(configuration)["transport_socket"] = upstream

    return edit


@pytest.mark.timeout(180)
async def test_every_case(served_bridge, emulator, tmp_path):
    folders = {name: tmp_path / name for name in ("files", "plain", "tls", "mtls")}
    for folder in folders.values():
        folder.mkdir()
    files = folders["files"]
    variables = issued(files)
    server = {"tls__cert_file": files / "server.crt", "tls__key_file": files / "server.key"}
    async with contextlib.AsyncExitStack() as stack:
        behind_tls = await stack.enter_async_context(_secure(emulator, files, server))
        plain = await stack.enter_async_context(running_envoy(folders["plain"], served_bridge.address))
        tls, mtls = [
            await stack.enter_async_context(
                running_envoy(folders[name], behind_tls.address, edit=secured(files, mutual=name == "mtls"))
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
    expected = programs.expected("python")
    assert seen.keys() == expected.keys()
    for case, line in expected.items():
        assert seen[case] == line, case
    exchanges = [exchange.record() for exchange in emulator.exchanges]
    for saw in SAW.values():
        saw(exchanges)


def _secure(emulator, files, server):
    return served(emulator, **server, tls__client_ca_file=files / "ca.crt")
