"""A real Envoy that runs deploy/envoy/envoy.yaml, with free ports and a test's bridges in place of the addresses there.

The configuration is edited as a value, so that what is tested is the file that a team takes. Envoy is what `make
.venv-mesh/ready` installs, in a venv of its own, which also reads the YAML.
"""

import asyncio
import contextlib
import functools
import json
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest

from tests.conftest import Bridge, eventually

__all__ = ["CONFIGURATION", "ENVOY", "Envoy", "cluster", "connection_manager", "listener", "read_yaml", "running_envoy"]

ROOT = Path(__file__).parents[2]
ENVOY = ROOT / ".venv-mesh" / "bin" / "envoy"
PYTHON = ENVOY.with_name("python")  # it has a reader of YAML
CONFIGURATION = ROOT / "deploy" / "envoy" / "envoy.yaml"
START_S = 20

Configuration = dict[str, Any]


class Envoy(Bridge):
    """A running Envoy and a client of it, which asks it as it would ask a bridge."""

    process: asyncio.subprocess.Process
    admin: httpx2.AsyncClient
    access: list[dict[str, Any]]
    """The access log so far."""
    said: list[str]
    """Envoy's own log so far."""

    async def logged(self, request_id: str) -> dict[str, Any]:
        """The access log's one line of a call, once it is there."""

        def lines():
            return [line for line in self.access if line["request_id"] == request_id]

        await eventually(lines)
        (line,) = lines()
        return line

    async def stats(self, prefix: str) -> dict[str, int]:
        """The counters and gauges whose names begin so, by the rest of their names."""
        answer = await self.admin.get("/stats", params={"format": "json", "filter": f"^{prefix}"})
        return {stat["name"].removeprefix(prefix): stat["value"] for stat in answer.json()["stats"] if "value" in stat}

    async def healthy(self) -> int:
        """How many bridges are in the balancing."""
        return (await self.stats("cluster.bridge."))["membership_healthy"]


def read_yaml(path: Path) -> Any:
    """Give what a YAML file says, as a value of the caller's own."""
    return json.loads(_as_json(path))


@functools.cache
def _as_json(path: Path) -> bytes:
    program = "import json, sys, yaml; json.dump(yaml.safe_load(sys.stdin.buffer), sys.stdout)"
    with path.open("rb") as file:
        return subprocess.run([PYTHON, "-c", program], stdin=file, stdout=subprocess.PIPE, check=True).stdout


def listener(configuration: Configuration) -> dict[str, Any]:
    """The listener for calls."""
    (only,) = configuration["static_resources"]["listeners"]
    return only


def connection_manager(configuration: Configuration) -> dict[str, Any]:
    """What handles the listener's HTTP."""
    return listener(configuration)["filter_chains"][0]["filters"][0]["typed_config"]


def cluster(configuration: Configuration) -> dict[str, Any]:
    """The bridges."""
    (only,) = configuration["static_resources"]["clusters"]
    return only


def configured(bridges: tuple[str, ...], edit: Callable[[Configuration], None]) -> Configuration:
    """Give the configuration with free ports, these bridges, and what else a test must have otherwise."""
    configuration = read_yaml(CONFIGURATION)
    configuration["admin"]["address"]["socket_address"]["port_value"] = 0
    listener(configuration)["address"]["socket_address"]["port_value"] = 0
    (endpoints,) = cluster(configuration)["load_assignment"]["endpoints"]
    endpoints["lb_endpoints"] = [
        {"endpoint": {"address": {"socket_address": {"address": host, "port_value": int(port)}}}}
        for host, port in (bridge.rsplit(":", 1) for bridge in bridges)
    ]
    edit(configuration)
    return configuration


@contextlib.asynccontextmanager
async def running_envoy(
    folder: Path,
    *bridges: str,
    edit: Callable[[Configuration], None] = lambda _: None,
    channel: dict[str, Any] | None = None,
) -> AsyncIterator[Envoy]:
    """Run Envoy in front of the bridges (HOST:PORT), once it listens. `channel` are options of the client."""
    config, admin_address = folder / "envoy.json", folder / "admin"
    config.write_text(json.dumps(configured(bridges, edit)))
    process = await asyncio.create_subprocess_exec(
        *(ENVOY, "-c", config, "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"),
        *("--admin-address-path", admin_address, "--file-flush-interval-msec", "20"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=1 << 20,
    )
    access: list[dict[str, Any]] = []
    said: list[str] = []
    reading = [
        asyncio.create_task(_read(process.stdout, lambda line: access.append(json.loads(line)))),
        asyncio.create_task(_read(process.stderr, said.append)),
    ]
    try:
        async with contextlib.AsyncExitStack() as stack:
            await eventually(lambda: process.returncode is not None or _text(admin_address), START_S)
            if process.returncode is not None:
                pytest.fail("Envoy ended:\n" + "\n".join(said))
            admin = httpx2.AsyncClient(base_url=f"http://{_text(admin_address)}", trust_env=False)
            await stack.enter_async_context(admin)
            address = await _listening(admin)
            opened = grpc.aio.insecure_channel(address, options=tuple((channel or {}).items()))
            envoy = Envoy(address, await stack.enter_async_context(opened))
            envoy.process, envoy.admin, envoy.access, envoy.said = process, admin, access, said
            yield envoy
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await asyncio.gather(*reading)


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


async def _listening(admin: httpx2.AsyncClient) -> str:
    """Give the listener's address, once Envoy has asked the bridges for their health and takes calls."""
    async with asyncio.timeout(START_S):
        while (await admin.get("/ready")).text.strip() != "LIVE":  # noqa: ASYNC110 - it announces nothing
            await asyncio.sleep(0.02)
    (found,) = (await admin.get("/listeners", params={"format": "json"})).json()["listener_statuses"]
    where = found["local_address"]["socket_address"]
    return f"{where['address']}:{where['port_value']}"


async def _read(pipe: asyncio.StreamReader, take: Callable[[str], None]) -> None:
    while line := await pipe.readline():
        take(line.decode().rstrip("\n"))
