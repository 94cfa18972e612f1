"""The gateway: its address, its routes, and the record of what came.

It knows the gateway's API page (fields, refusals, answers), the wire as TensorZero gateways are seen to speak it, and
the ways in which upstreams fail. Its rule: the same request gets the same answer, and a failure comes only when asked
for, by the model name `scenario::NAME?key=value&key=value` or, for all requests, by `Emulator(scenario=…)`. If the API
page is silent, it is as strict as TensorZero 2026.4.1.
"""

import asyncio
import socket
import time
import urllib.parse
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self

from bridge.emulator.answers import Call, Memory
from bridge.emulator.completions import Cache, authenticate, collect_tags, select_model
from bridge.emulator.exchange import Exchange
from bridge.emulator.requests import check_body, parse_body
from bridge.emulator.scenarios import SCENARIOS, parse_scenario
from bridge.emulator.steps import Header, RefusalError, Step, send, send_json
from bridge.emulator.wire import Connection
from bridge.tcp import close_server

__all__ = ["DEFAULT_MODELS", "Emulator"]

DEFAULT_MODELS: tuple[str, ...] = ("near_qwen3_30b", "echo")
VERSION = "emulator"
EXCHANGES_MAX = 10_000
"""Exchanges that are recorded."""
EXCHANGE_BODY_BYTES_MAX = 256 * 1024 * 1024
"""Of all recorded exchanges together."""
RATE_LIMIT = 1_000
"""Requests, as x-ratelimit-limit-requests shows it; nothing is refused by it."""

_RECORD_PREFIX = "/_emulator/"


class Emulator:
    """The gateway, from `async with` to its end: `async with Emulator() as gateway: … gateway.url …`.

    Args:
        host: the address to listen on.
        port: 0 takes a free one.
        scenario: what every request meets, unless its model names another: `NAME?key=value&key=value`.
        api_key: the bearer token that callers must send, as on the dev gateway; None ignores theirs, as on prod.
        models: the plain model names that exist.
        chunk_delay_s: the pause before each chunk of a stream but the first.
        exchanges_max: how many exchanges are kept.
        exchange_body_bytes_max: how many bytes of bodies are kept with them, all together.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        scenario: str = "",
        api_key: str | None = None,
        models: Sequence[str] = DEFAULT_MODELS,
        chunk_delay_s: float = 0.0,
        exchanges_max: int = EXCHANGES_MAX,
        exchange_body_bytes_max: int = EXCHANGE_BODY_BYTES_MAX,
    ) -> None:
        self.host = host
        self.port = port
        self.scenario = scenario
        self.api_key = api_key
        self.models = tuple(models)
        self.chunk_delay_s = chunk_delay_s
        self.exchanges: list[Exchange] = []
        self.connections: set[Connection] = set()
        self.connections_opened = 0
        self._exchanges_max = exchanges_max
        self._body_bytes_max = exchange_body_bytes_max
        self._body_bytes = 0
        self._new: deque[Exchange] = deque(maxlen=exchanges_max)
        self._arrival = asyncio.Event()
        self._cache = Cache()
        self._memory = Memory()
        self._server: asyncio.Server | None = None
        self._held: list[socket.socket] = []
        if scenario:
            name, values = parse_scenario(scenario)
            self._memory.resets_due = values["connects"] if name == "refuse" else 0

    @property
    def url(self) -> str:
        """The base URL, without a path."""
        return f"http://{self.host}:{self.port}"

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.refuse()
        self._let_go_of_port()
        connections = list(self.connections)
        for connection in connections:
            connection.abort()
        for connection in connections:
            await connection.wait_lost()

    async def refuse(self) -> None:
        """Stop listening: connects are refused (ECONNREFUSED); connections already open stay.

        The port is held meanwhile, so that no other server gets it, and the requests that are meant for this one.
        """
        if self._server is not None:
            server, self._server = self._server, None
            addresses = [(listener.family, listener.getsockname()) for listener in server.sockets]
            await close_server(server)
            self._held += [_hold(family, address) for family, address in addresses]

    async def accept(self) -> None:
        """Listen (again), on the same port, and reset no more connections at accept."""
        if self._server is None:
            self._let_go_of_port()
            loop = asyncio.get_running_loop()
            if self.host == "::":  # takes IPv4 too
                listener = socket.create_server(("::", self.port), family=socket.AF_INET6, dualstack_ipv6=True)
                self._server = await loop.create_server(self._create_connection, sock=listener, backlog=4096)
            else:
                self._server = await loop.create_server(self._create_connection, self.host, self.port, backlog=4096)
            self.port = self._server.sockets[0].getsockname()[1]
            return
        self._memory.resets_due = 0

    def _let_go_of_port(self) -> None:
        while self._held:
            self._held.pop().close()

    async def next_exchange(self, timeout_s: float = 30) -> Exchange:
        """Return the oldest exchange that this method has not yet returned, once there is one; else TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while not self._new:
                self._arrival.clear()
                await self._arrival.wait()
        return self._new.popleft()

    def answer(self, exchange: Exchange) -> Iterator[Step]:
        """Record a request, and return the steps of its answer."""
        if not exchange.path.startswith(_RECORD_PREFIX):
            self._record(exchange)
        path, _, query = exchange.path.partition("?")
        routes = self._ROUTES.get(path)
        if routes is None:
            return send_json(404, {"error": f"Route not found: {exchange.method} {path}"})
        if exchange.method not in routes:
            return send(405, b"", ("allow", ", ".join(routes)))
        try:
            return routes[exchange.method](self, exchange, query)
        except RefusalError as refusal:
            return refusal.send()

    def _record(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        self._new.append(exchange)
        self._arrival.set()
        self._body_bytes += len(exchange.body)
        if self._body_bytes > self._body_bytes_max:  # by this count, which does not see what a test has cleared
            self._body_bytes = sum(len(each.body) for each in self.exchanges)
        while len(self.exchanges) > 1 and (
            len(self.exchanges) > self._exchanges_max or self._body_bytes > self._body_bytes_max
        ):
            self._body_bytes -= len(self.exchanges.pop(0).body)

    def _create_connection(self) -> Connection:
        return Connection(
            self.answer, self._build_headers, on_open=self._add_connection, on_close=self.connections.discard
        )

    def _add_connection(self, connection: Connection) -> None:
        self.connections_opened += 1
        self.connections.add(connection)
        if self._memory.resets_due > 0:
            self._memory.resets_due -= 1
            connection.reset()

    def _build_headers(self, exchange: Exchange) -> list[Header]:
        """Return the headers that every response has."""
        return [
            ("x-request-id", exchange.headers.get("x-request-id") or str(uuid.uuid4())),
            ("openai-processing-ms", str(round((time.monotonic() - exchange.received_at) * 1000))),
            ("x-ollm-gateway-version", VERSION),
            ("x-ratelimit-limit-requests", str(RATE_LIMIT)),
            ("x-ratelimit-remaining-requests", str(RATE_LIMIT - 1 - len(self.exchanges) % RATE_LIMIT)),
        ]

    def _complete(self, exchange: Exchange, _query: str) -> Iterator[Step]:
        """Answer `POST /v1/chat/completions`."""
        authenticate(exchange.headers, self.api_key)
        body = exchange.json = parse_body(exchange.body)
        check_body(body)
        exchange.tags = collect_tags(body, exchange.headers)
        model_name, scenario = select_model(body, self.models)
        try:
            name, values = parse_scenario(scenario or self.scenario or "plain")
        except ValueError as error:
            raise RefusalError(404, str(error), code="model_not_found", param="model") from error
        exchange.billed = not body.get("ollm::dryrun")
        call = Call(
            body,
            exchange.body,
            model_name,
            cached=self._cache.look_up(body),
            chunk_delay_s=self.chunk_delay_s,
            memory=self._memory,
        )
        if name == "refuse" and not scenario:  # these connections were reset when the emulator began
            return call.send()
        return SCENARIOS[name].run(call, values)

    def _list_models(self, exchange: Exchange, _query: str) -> Iterator[Step]:
        """Answer `GET /v1/models`."""
        authenticate(exchange.headers, self.api_key)
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "emulator"} for name in self.models]
        return send_json(200, {"object": "list", "data": models})

    def _list_exchanges(self, _exchange: Exchange, query: str) -> Iterator[Step]:
        """Answer `GET /_emulator/exchanges`, with `?last=N` the newest alone."""
        last = dict(urllib.parse.parse_qsl(query)).get("last", "")
        count = int(last) if last.isascii() and last.isdigit() else self._exchanges_max
        newest = self.exchanges[max(0, len(self.exchanges) - count) :]
        return send_json(200, [exchange.record() for exchange in newest])

    def _check_health(self, _exchange: Exchange, _query: str) -> Iterator[Step]:
        """Answer `GET /health`."""
        return send_json(200, {"status": "ok"})

    _ROUTES: Mapping[str, Mapping[str, Callable[["Emulator", Exchange, str], Iterator[Step]]]] = {
        "/v1/chat/completions": {"POST": _complete},
        "/v1/models": {"GET": _list_models},
        "/health": {"GET": _check_health},
        "/_emulator/exchanges": {"GET": _list_exchanges},
    }


def _hold(family: socket.AddressFamily, address: tuple[str, int]) -> socket.socket:
    """Return a socket that is bound to an address and does not listen."""
    held = socket.socket(family)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that are open have the address too
    held.bind(address)
    return held
