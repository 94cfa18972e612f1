"""The place of one client: an emulated gateway and three bridges in front of it, each a process of its own.

One bridge accepts calls without TLS, one with TLS, and one requires a client certificate. A place is for one client, so
the emulator records only its exchanges.
"""

import contextlib
import json
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustme
from cryptography.hazmat.primitives import serialization

from tests.kit.bridges import SERVER_ENGINE
from tests.kit.processes import BRIDGE, Program, clean_environment, start_program


@dataclass(frozen=True)
class Place:
    """The variables with the bridges' addresses, and the emulator's URL."""

    variables: Mapping[str, str]
    gateway: str

    def fetch_exchanges(self) -> list[dict[str, Any]]:
        """Return the gateway's exchanges in order."""
        with urllib.request.urlopen(f"{self.gateway}/_emulator/exchanges", timeout=10) as response:
            return json.load(response)


@contextlib.contextmanager
def start_place(folder: Path) -> Iterator[Place]:
    """Start all processes; the folder gets certificates and logs."""
    files = _write_certificates(folder)
    server = {"TLS__CERT_FILE": files["server.crt"], "TLS__KEY_FILE": files["server.key"]}
    with contextlib.ExitStack() as stack:
        emulator = stack.enter_context(_start(folder, "emulate", "--listen", "127.0.0.1:0"))
        gateway = f"http://{emulator.address}"
        serve = ("serve", "--upstream", gateway, "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0")
        plain, tls, mtls = (
            stack.enter_context(_start(folder, *serve, SERVER__ENGINE=SERVER_ENGINE, **settings))
            for settings in ({}, server, server | {"TLS__CLIENT_CA_FILE": files["ca.crt"]})
        )
        variables = {
            "BRIDGE_ADDRESS": plain.address,
            "BRIDGE_TLS_ADDRESS": tls.address.replace("127.0.0.1", "localhost"),
            "BRIDGE_MTLS_ADDRESS": mtls.address.replace("127.0.0.1", "localhost"),
            "CA_FILE": files["ca.crt"],
            "CERT_FILE": files["client.crt"],
            "KEY_FILE": files["client.key"],
        }
        yield Place(variables, gateway)


def _start(folder: Path, *arguments: str, **settings: str) -> AbstractContextManager[Program]:
    """Start `ollm-bridge`."""
    environment = clean_environment() | {f"OLLM_BRIDGE_{name}": value for name, value in settings.items()}
    log = folder / f"{'-'.join([arguments[0], *settings]).lower()}.log"
    return start_program(*BRIDGE, *arguments, log=log, environment=environment)


def _write_certificates(folder: Path) -> dict[str, str]:
    """Write certificates of one authority for a server and a client, with their keys (PKCS #8); return the paths."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.crt")
    for name, identity in (("server", "localhost"), ("client", "client.example")):
        issued = authority.issue_cert(identity)
        issued.cert_chain_pems[0].write_to_path(folder / f"{name}.crt")
        key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), password=None)
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (folder / f"{name}.key").touch(mode=0o600)
        (folder / f"{name}.key").write_bytes(key.private_bytes(*form))
    return {path.name: str(path) for path in folder.iterdir()}
