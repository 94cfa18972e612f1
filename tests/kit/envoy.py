"""A real Envoy that runs deploy/envoy/envoy.yaml, with free ports and a test's bridges instead of its addresses.

The configuration is edited as a value, so the tested file is the one that a team uses. `make .venv-mesh/ready` installs
Envoy in a venv of its own, which also reads the YAML.
"""

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest

from tests.kit.client import Bridge
from tests.kit.processes import run_program, start_program_async
from tests.kit.waiting import eventually

__all__ = [
    "CONFIGURATION",
    "ENVOY",
    "Envoy",
    "get_cluster",
    "get_connection_manager",
    "get_listener",
    "read_yaml",
    "run_envoy",
]

ROOT = Path(__file__).parents[2]
ENVOY = ROOT / ".venv-mesh" / "bin" / "envoy"
PYTHON = ENVOY.with_name("python")  # it has a reader of YAML
CONFIGURATION = ROOT / "deploy" / "envoy" / "envoy.yaml"
START_S = 20

Configuration = dict[str, Any]


class Envoy(Bridge):
    """A running Envoy and a client, which calls it like a bridge."""

    process: asyncio.subprocess.Process
    admin: httpx2.AsyncClient
    access: list[dict[str, Any]]
    """The access log so far."""
    said: list[str]
    """Envoy's own log so far."""

    async def wait_for_log_line(self, request_id: str) -> dict[str, Any]:
        """Wait for the one line of a call in the access log, and return it."""

        def lines():
            return [line for line in self.access if line["request_id"] == request_id]

        await eventually(lines)
        (line,) = lines()
        return line

    async def fetch_stats(self, prefix: str) -> dict[str, int]:
        """Return the counters and gauges with this prefix, by the rest of their names."""
        answer = await self.admin.get("/stats", params={"format": "json", "filter": f"^{prefix}"})
        return {stat["name"].removeprefix(prefix): stat["value"] for stat in answer.json()["stats"] if "value" in stat}

    async def count_healthy(self) -> int:
        """Count the bridges that Envoy balances over."""
        return (await self.fetch_stats("cluster.bridge."))["membership_healthy"]


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file as a new value."""
    return json.loads(_convert_to_json(path))


@functools.cache
def _convert_to_json(path: Path) -> str:
    program = "import json, sys, yaml; json.dump(yaml.safe_load(sys.stdin.buffer), sys.stdout)"
    with path.open("rb") as file:
        code, out, err = run_program(PYTHON, "-c", program, stdin=file)
    assert code == 0, err
    return out


def get_listener(configuration: Configuration) -> dict[str, Any]:
    """Return the listener for calls."""
    (only,) = configuration["static_resources"]["listeners"]
    return only


def get_connection_manager(configuration: Configuration) -> dict[str, Any]:
    """Return the filter that handles the listener's HTTP."""
    return get_listener(configuration)["filter_chains"][0]["filters"][0]["typed_config"]


def get_cluster(configuration: Configuration) -> dict[str, Any]:
    """Return the cluster of the bridges."""
    (only,) = configuration["static_resources"]["clusters"]
    return only


def build_configuration(bridges: tuple[str, ...], edit: Callable[[Configuration], None]) -> Configuration:
    """Return the configuration with free ports, these bridges, and a test's own edit."""
    configuration = read_yaml(CONFIGURATION)
    configuration["admin"]["address"]["socket_address"]["port_value"] = 0
    get_listener(configuration)["address"]["socket_address"]["port_value"] = 0
    (endpoints,) = get_cluster(configuration)["load_assignment"]["endpoints"]
    endpoints["lb_endpoints"] = [
        {"endpoint": {"address": {"socket_address": {"address": host, "port_value": int(port)}}}}
        for host, port in (bridge.rsplit(":", 1) for bridge in bridges)
    ]
    edit(configuration)
    return configuration


@contextlib.asynccontextmanager
async def run_envoy(
    folder: Path,
    *bridges: str,
    edit: Callable[[Configuration], None] = lambda _: None,
    channel: dict[str, Any] | None = None,
) -> AsyncIterator[Envoy]:
    """Run Envoy in front of the bridges (HOST:PORT), once it listens. `channel` are options of the client."""
    config, admin_address = folder / "envoy.json", folder / "admin"
    config.write_text(json.dumps(build_configuration(bridges, edit)))
    command = (
        *(ENVOY, "-c", config, "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"),
        *("--admin-address-path", admin_address, "--file-flush-interval-msec", "20"),
    )
    access: list[dict[str, Any]] = []
    said: list[str] = []
    async with contextlib.AsyncExitStack() as stack:
        process = await stack.enter_async_context(start_program_async(*command, limit=1 << 20))
        reading = [
            asyncio.create_task(_read(process.stdout, lambda line: access.append(json.loads(line)))),
            asyncio.create_task(_read(process.stderr, said.append)),
        ]
        for task in reading:
            stack.callback(task.cancel)
        await eventually(lambda: process.returncode is not None or _read_text(admin_address), START_S)
        if process.returncode is not None:
            pytest.fail("Envoy ended:\n" + "\n".join(said))
        admin = httpx2.AsyncClient(base_url=f"http://{_read_text(admin_address)}", trust_env=False)
        await stack.enter_async_context(admin)
        address = await _wait_until_live(admin)
        opened = grpc.aio.insecure_channel(address, options=tuple((channel or {}).items()))
        envoy = Envoy(address, await stack.enter_async_context(opened))
        envoy.process, envoy.admin, envoy.access, envoy.said = process, admin, access, said
        yield envoy


def _read_text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


async def _wait_until_live(admin: httpx2.AsyncClient) -> str:
    """Return the listener's address, once Envoy has checked the bridges' health and accepts calls."""
    async with asyncio.timeout(START_S):
        while (await admin.get("/ready")).text.strip() != "LIVE":  # noqa: ASYNC110 - it announces nothing
            await asyncio.sleep(0.02)
    (found,) = (await admin.get("/listeners", params={"format": "json"})).json()["listener_statuses"]
    where = found["local_address"]["socket_address"]
    return f"{where['address']}:{where['port_value']}"


async def _read(pipe: asyncio.StreamReader, take: Callable[[str], None]) -> None:
    while line := await pipe.readline():
        take(line.decode().rstrip("\n"))
