"""The contenders of the bridge; the letters are those of docs/performance.md.

A contender's `start` runs it on given cores, in front of an upstream, with its log in a file as an operator would
have it. Those without a bridge start nothing: the upstream itself is what their callers call.
"""

import contextlib
import functools
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from lab.bench import processes
from lab.bench.contenders import asgi
from lab.bench.contenders.golang import GO, start_go_bare, start_go_bridge
from lab.bench.contenders.place import Place
from lab.bench.processes import LOAD_CORES, Process
from lab.environment import ROOT, ask_version
from tests.kit.processes import find_free_port

__all__ = [
    "AIOHTTP",
    "BARE",
    "BRIDGE",
    "CONTENDERS",
    "GO_BARE",
    "GO_BRIDGE",
    "GO_KEEP",
    "LITELLM",
    "NATIVE",
    "ON_REQUEST",
    "OPENAI_SDK",
    "Contender",
    "Place",
    "create_bridge",
    "read_versions",
]

HERE = Path(__file__).parent
GO_MISSING = "Go 1.26 or later, on the PATH or in /usr/local/go"


@dataclass(frozen=True)
class Contender:
    """`caller` is the kind of client that calls it; `program` what it needs beside this venv, and `how` to get that."""

    key: str
    title: str
    caller: Literal["grpc", "aiohttp", "openai"]
    start: Callable[[Place], AbstractContextManager[Process]] = field(repr=False)
    program: Path | None = None
    how: str = ""

    @property
    def is_installed(self) -> bool:
        return self.program is None or self.program.exists()

    @property
    def is_server(self) -> bool:
        """Whether it runs a process between caller and upstream."""
        return self.start is not _nobody


def _bridge(place: Place, directory: Path = ROOT, engine: str = "grpcio") -> AbstractContextManager[Process]:
    """Logs and metrics are on, as they are by default. The ports are chosen, and one caller makes all calls."""
    chosen = {
        "OLLM_BRIDGE_SERVER__ENGINE": engine,
        "OLLM_BRIDGE_CALLS_PER_CALLER_MAX": "100000",
        "OLLM_BRIDGE_CONNECTIONS__STREAMS_MAX": "1000",
    }
    command = ["-m", "bridge", "serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]
    return processes.start(
        [sys.executable, *command, "--upstream", place.upstream_url, "--workers", str(place.workers)],
        cores=place.cores,
        log=place.log("bridge"),
        directory=directory,
        environment={"PYTHONPATH": f"{directory}:{directory / 'generated'}"} | chosen | _bridge_tls(place.tls),
        tls=place.tls,
    )


def _bridge_tls(folder: Path | None) -> dict[str, str]:
    if folder is None:
        return {}
    pair = str(folder / "server.pem")
    files = {"TLS__CERT_FILE": pair, "TLS__KEY_FILE": pair, "UPSTREAM__CA_FILE": str(folder / "ca.pem")}
    return {f"OLLM_BRIDGE_{name}": path for name, path in files.items()}


def create_bridge(directory: Path) -> Contender:
    """The bridge of another checkout, for before and after in one run."""
    start = functools.partial(_bridge, directory=directory.resolve())
    return Contender(f"bridge of {directory.name}", f"(a) the bridge of {directory}", "grpc", start)


def _script(name: str, *arguments: str, place: Place) -> AbstractContextManager[Process]:
    command = [sys.executable, str(HERE / f"{name}.py"), *arguments]
    return processes.start(command, cores=place.cores, log=place.log(name), tls=place.tls)


def _bare(place: Place) -> AbstractContextManager[Process]:
    return _script("bare", str(place.files), *([str(place.tls)] if place.tls else []), place=place)


def _openai_sdk(place: Place) -> AbstractContextManager[Process]:
    return _script("openai_sdk", place.upstream_url, place=place)


def _httpx_json(place: Place) -> AbstractContextManager[Process]:
    return _script("httpx_json", place.upstream_url, place=place)


def _nobody(place: Place) -> AbstractContextManager[Process]:
    return contextlib.nullcontext(place.upstream)


def _litellm(place: Place) -> AbstractContextManager[Process]:
    """It passes every model on, as one process. It asks for no key, as the others do not, and fetches no price list.

    It takes a hundred equal chunks for a model that has lost its way, which is not what is measured here, and holds 500
    connections to one upstream at most, where a thousand streams are to be held.
    """
    parameters = {"model": "openai/*", "api_base": f"{place.upstream_url}/v1", "api_key": "none"}
    config = place.files / "litellm.json"  # JSON is YAML
    config.write_text(json.dumps({"model_list": [{"model_name": "*", "litellm_params": parameters}]}))
    port = find_free_port()
    where = ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1", "--telemetry", "False"]
    return processes.start(
        [str(LITELLM.program), "--config", str(config), *where],
        cores=place.cores,
        log=place.log("litellm"),
        environment={
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "REPEATED_STREAMING_CHUNK_LIMIT": "1000000000",
            "AIOHTTP_CONNECTOR_LIMIT": "10000",
            "AIOHTTP_CONNECTOR_LIMIT_PER_HOST": "10000",
        },
        port=port,
    )


@contextlib.contextmanager
def _envoy(place: Place) -> Iterator[Process]:
    """Envoy alone on the cores under test, in front of a (b) of its own on the others."""
    with _bare(replace(place, cores=LOAD_CORES)) as behind:
        port = find_free_port()
        config = place.files / "envoy.json"
        config.write_text(json.dumps(_envoy_config(port, int(behind.address.rpartition(":")[2]))))
        command = [str(ENVOY.program), "--config-path", str(config), "--concurrency", "1", "--use-dynamic-base-id"]
        with processes.start(command, cores=place.cores, log=place.log("envoy"), port=port) as envoy:
            yield envoy


def _envoy_config(port: int, port_behind: int) -> object:
    """Plain gRPC in, plain gRPC out, no limit of time; the buffers are Envoy's own."""
    typed = "type.googleapis.com/envoy.extensions"

    def at(number: int) -> object:
        return {"socket_address": {"address": "127.0.0.1", "port_value": number}}

    route = {"match": {"prefix": "/"}, "route": {"cluster": "behind", "timeout": "0s"}}
    manager = {
        "@type": f"{typed}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "grpc",
        "codec_type": "HTTP2",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {"name": "router", "typed_config": {"@type": f"{typed}.filters.http.router.v3.Router"}},
        ],
    }
    http2 = {
        "@type": f"{typed}.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    cluster = {
        "name": "behind",
        "connect_timeout": "5s",
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
        "circuit_breakers": {"thresholds": [{"max_requests": 100_000, "max_pending_requests": 100_000}]},
        "load_assignment": {
            "cluster_name": "behind",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": at(port_behind)}}]}],
        },
    }
    listener = {
        "name": "grpc",
        "address": at(port),
        "filter_chains": [{"filters": [{"name": "manager", "typed_config": manager}]}],
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


BRIDGE = Contender("bridge", "(a) the bridge, its grpcio engine", "grpc", _bridge)
NATIVE = Contender("native", "(a) the bridge, its native engine", "grpc", functools.partial(_bridge, engine="native"))
BARE = Contender("bare", "(b) bare grpc.aio, from memory", "grpc", _bare)
GO_BARE = Contender("go_bare", "(b) bare grpc-go, from memory", "grpc", start_go_bare, GO, GO_MISSING)
GO_BRIDGE = Contender(
    "go_bridge",
    "(c) grpc-go, net/http, encoding/json",
    "grpc",
    functools.partial(start_go_bridge, keep=False),
    GO,
    GO_MISSING,
)
GO_KEEP = replace(
    GO_BRIDGE,
    key="go_keep",
    title="(c) the same, keeping unknown keys",
    start=functools.partial(start_go_bridge, keep=True),
)
OPENAI_SDK = Contender("openai_sdk", "(c) grpc.aio and the OpenAI SDK", "grpc", _openai_sdk)
HTTPX_JSON = Contender("httpx_json", "(c) grpc.aio, httpx2, json_format", "grpc", _httpx_json)
AIOHTTP = Contender("aiohttp", "(d) no bridge: aiohttp", "aiohttp", _nobody)
OPENAI = Contender("openai", "(d) no bridge: the OpenAI SDK", "openai", _nobody)
LITELLM = Contender(
    "litellm",
    "(e) LiteLLM's proxy, HTTP",
    "aiohttp",
    _litellm,
    ROOT / ".venv-litellm/bin/litellm",
    "make .venv-litellm/ready",
)
ENVOY = Contender(
    "envoy", "(f) Envoy before (b)", "grpc", _envoy, ROOT / ".venv-mesh/bin/envoy", "make .venv-mesh/ready"
)
HYPERCORN = Contender(
    "hypercorn",
    "(g) the application under hypercorn",
    "grpc",
    asgi.start_hypercorn,
    asgi.FOLDER / "hypercorn",
    asgi.MISSING,
)
H2CORN = Contender(
    "h2corn", "(g) the application under h2corn", "grpc", asgi.start_h2corn, asgi.FOLDER / "h2corn", asgi.MISSING
)

CONTENDERS = (
    *(BRIDGE, NATIVE, BARE, GO_BARE, GO_BRIDGE, GO_KEEP),
    *(OPENAI_SDK, HTTPX_JSON, AIOHTTP, OPENAI, LITELLM, ENVOY),
)
ON_REQUEST = (HYPERCORN, H2CORN)
"""Measured only if they are named: experiments, which docs/performance.md leaves out."""


def read_versions() -> dict[str, str | None]:
    """Return the versions of the contenders that are programs of their own, None of those that are not installed."""
    litellm = [path.name for path in ROOT.glob(".venv-litellm/lib/*/site-packages/litellm-*.dist-info")]
    return {
        "litellm": litellm[0].removeprefix("litellm-").removesuffix(".dist-info") if litellm else None,
        "go": ask_version(GO, "version", r"go(\d\S*)"),
        "envoy": ask_version(ENVOY.program, "--version", r"/(\d+\.\d+\.\d+)/"),
    }
