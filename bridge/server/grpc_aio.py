"""grpc.aio as a transport (`rpc.py`), and every workaround for it: nothing of its faults is known elsewhere.

Handlers are registered as if each method took a stream of requests. For a method that takes one message grpc.aio
itself waits for it, without a limit, and never asks a handler if it does not come; so `receive` waits for it instead.

Each row below has the fault; where it is reported; the versions that have it; the test that shows it; and when the
workaround can be deleted. The code names the row.

 1. Calls that the core has not handed over when the server stops end as CANCELLED, which callers take for their own.
    Reported: grpc/grpc#41785. Versions: 1.64 to 1.85.1. Test: tests/e2e/test_drain.py. Delete when #41786 is in the
    pinned release.
 2. The server keeps the AbortError of a call, and the error keeps its frames: all that the handler held. Reported:
    fixed for the sync server in grpc/grpc#17899. Versions: 1.83.2. Test: tests/e2e/test_containment.py. Delete when
    an aborted call holds nothing in that test without it.
 3. Each call leaves a circle of references that holds its metadata: few objects, but large. Not reported that we
    know. Versions: 1.83.2. Test: tests/e2e/test_containment.py. Delete when memory is flat in that test without it.
 4. An operation on a call that is over raises InternalError (ExecuteBatchError), and is logged with a stack.
    Reported: grpc/grpc#32551. Versions: 1.47 to 1.85.1. Test: tests/e2e/test_cancel.py. Delete when writes to a
    cancelled call raise CancelledError and log nothing.
 5. Nothing says whether a call ended by its deadline or by its caller; the core ends it up to 10 ms early. Not
    reported that we know. Versions: 1.83.2. Test: tests/e2e/test_deadline.py. Delete when the context can tell.
 6. A message that the core refuses (too large, bad encoding) looks like the end of the call, then cancels the
    handler. Not reported that we know. Versions: 1.83.2. Test: tests/e2e/test_errors.py. Delete when `read` raises
    for it.
 7. Cancelling `wait_for_termination` breaks a later `stop`. Not reported that we know. Versions: 1.83.2. Test:
    tests/e2e/test_drain.py. Delete when it can be cancelled.
 8. Beyond 1,000 calls that wait for a handler the core cancels calls by chance, good ones too; and it keeps those whose
    connection is closed, of up to 80 KiB each. So a larger number waits, but no more than memory is reckoned for.
    Reported: grpc/grpc#34782 brought the limit. Versions: 1.60 to 1.85.1. Tests: tests/e2e/test_containment.py,
    tests/e2e/test_memory.py. Delete when the limit refuses with a status.
 9. Between the metadata limit and the absolute one the core refuses calls by chance, and before SETTINGS is
    acknowledged not at all, so who does not acknowledge is cut off. Not reported that we know. Versions: 1.83.2.
    Test: tests/e2e/test_errors.py, tests/e2e/test_admission.py. Delete when one limit holds from the first call.
10. Clients that ping each 10 to 30 s are cut off (too_many_pings); `grpc.http2.min_recv_ping_interval…` is unknown.
    Not reported that we know. Versions: 1.83.2. Test: tests/interop/real/test_keepalive.py. Delete when the default
    lets them live.
11. A second instance binds the same port silently (SO_REUSEPORT is on by default). Not reported that we know.
    Versions: all. Test: tests/unit/server/test_server.py. Delete when it is off by default.
12. The core logs what a peer's GOAWAY says, and with a stack what callers may do at will. Not reported that we know.
    Versions: 1.83.2. Test: tests/e2e/test_containment.py. Delete when its log is quiet on callers' faults.
14. A stream's window is 4 MiB from the start, and grows by measured bandwidth, so that calls that are not admitted are
    held in memory. Not reported that we know. Versions: 1.83.2. Test: tests/e2e/test_admission.py. Delete when a
    window opens only as its message is read.
13. From 1.84.0 on one request whose `:path` is not UTF-8 shuts the server down: the pin. Not reported that we know.
    Versions: 1.84.0 to 1.85.1. Test: tests/e2e/test_canary.py. Delete when that test passes with the newest release.
15. One call with an unknown grpc-encoding can make good calls on its connection fail: "Error parsing 'grpc-encoding'
    metadata". Nothing above the core can help. Not reported that we know. Versions: 1.83.2. Test:
    tests/interop/grpc/test_conformance.py. Delete when all of that suite passes in one run.
16. A call takes its place in the connection's limit until its memory is freed, which row 3 delays: callers who keep to
    the limit get REFUSED_STREAM. An option of the core counts streams as HTTP/2 does. Not reported that we know.
    Versions: 1.83.2. Test: tests/e2e/test_connections.py. Delete when row 3 is.

`listeners.py` has two more: the core unlinks a Unix socket that another process serves, and says of a bad key only
that the address can't be bound.
"""

import asyncio
import gc
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeAlias, cast

import grpc

from bridge.core.errors import Code
from bridge.core.headers import METADATA_BYTES_MAX, Metadata
from bridge.server.boundary import Boundary
from bridge.server.rpc import (
    Certificate,
    ClientDisconnectedError,
    RefusedByTransportError,
    RpcMethod,
    TakeRoom,
    find_expiry,
)
from bridge.settings import ConnectionSettings, Settings

__all__ = ["GrpcAioRpc", "count_pending_max", "create_handlers", "is_loggable", "list_options", "stop_server"]

Context: TypeAlias = grpc.aio.ServicerContext[bytes, bytes]

_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
_NO_CERTIFICATE: Final[Certificate] = {}
_REFUSAL_S: Final = 0.05
"""How long after a message's refusal by the core the handler is cancelled, at most (row 6)."""
_UNCOLLECTED_BYTES_MAX: Final = 32 * 1024 * 1024
"""Of messages and metadata, seen since garbage was last collected (row 3)."""
_UNREAD_BYTES_MAX: Final = 64 * 1024
"""Of a message that nobody reads yet (row 14)."""
_RESPONSE_BYTES_UNLIMITED: Final = -1  # the upstream's limits bound it
_STOP_S_MAX: Final = 60.0
"""Never reached: the holds of the stop end before."""
_STATUS_FLUSH_S: Final = 1.0
"""How long statuses already sent may take to reach their callers, and open Health.Watch streams to end."""
STOP_HOLD_S: Final = 0.05
"""How long no call must come before the stop goes on: for those that the core has taken in, and for its GOAWAYs."""
_STOP_HOLDS_MAX: Final = 20
_STOP_LATE_S: Final = 0.005
"""How late a hold may end and still tell that the machine is not busy."""


class GrpcAioRpc:
    """A call of grpc.aio's. What its context knows is copied at once: after the call's end, asking is a crash."""

    def __init__(
        self, method: str, context: Context, collector: "_Collector", *, is_unary: bool, is_secure: bool
    ) -> None:
        self.method = method
        self.metadata = cast("Metadata", context.invocation_metadata() or ())
        self.peer = context.peer()
        self.certificate = context.auth_context() if is_secure else _NO_CERTIFICATE
        self.caller = None
        self.timeout_s = cast("float | None", context.time_remaining())
        self._expires_at = find_expiry(self.timeout_s, time.monotonic())  # row 5
        self._context = context
        self._collector = collector
        self._is_unary = is_unary
        self._reply: bytes | None = None
        self._status: tuple[int, str, Metadata] = (Code.INTERNAL, "", ())
        collector.add(sum(map(len, itertools.chain.from_iterable(self.metadata))))

    def has_expired(self) -> bool:
        """Return whether the caller's deadline has passed."""
        return time.monotonic() >= self._expires_at

    async def receive(self, take_room: TakeRoom | None = None) -> bytes | None:
        """Return the call's message, which may be large; None if the caller ended the call without one."""
        if take_room is not None:
            await take_room()
        data: Any = await self._context.read()
        if data is not grpc.aio.EOF:
            self._collector.add(len(data))
            return cast("bytes", data)
        try:
            await asyncio.sleep(_REFUSAL_S)
        except asyncio.CancelledError as error:
            raise RefusedByTransportError from error
        return None

    async def decode(self, data: bytes) -> bytes:
        """Return a message as it is."""
        return data

    async def send_headers(self, metadata: Sequence[tuple[str, str]]) -> None:
        """Send the initial metadata."""
        try:
            await self._context.send_initial_metadata(tuple(metadata))
        except grpc.aio.InternalError as error:
            raise ClientDisconnectedError from error

    async def send(self, message: bytes, on_progress: Callable[[], None] | None = None) -> None:  # noqa: ARG002
        """Send a message; a unary method's goes out with the status, in one batch. No part of it is ever reported."""
        if self._is_unary:
            self._reply = message
            return
        try:
            await self._context.write(message)
        except grpc.aio.InternalError as error:
            raise ClientDisconnectedError from error

    def end(self, code: int, message: str, trailers: Metadata) -> None:
        """Keep the status, for `finish`."""
        self._status = (code, message, trailers)

    async def finish(self) -> bytes | None:
        """Send the status; return a unary method's reply. Raises what grpc.aio takes for a failure."""
        code, message, trailers = self._status
        context = self._context
        trailers = (*cast("Metadata", context.trailing_metadata() or ()), *trailers)
        if not code:
            context.set_trailing_metadata(trailers)
            return self._reply
        try:
            await context.abort(_CODES[code], message, trailers)
        except (grpc.aio.InternalError, grpc.aio.UsageError) as error:  # the caller has left meanwhile
            raise asyncio.CancelledError from error


def create_handlers(methods: Iterable[RpcMethod], *, is_secure: bool) -> list[grpc.GenericRpcHandler]:
    """Return what a server finds the handlers of methods by, one for each service."""
    collector = _Collector()
    services: dict[str, dict[str, Any]] = {}
    for method in methods:
        make = grpc.stream_unary_rpc_method_handler if method.is_unary else grpc.stream_stream_rpc_method_handler
        run = _make_runner(method, collector, is_secure=is_secure)
        services.setdefault(method.service, {})[method.name] = make(run)
    return [grpc.method_handlers_generic_handler(service, handlers) for service, handlers in services.items()]


def _make_runner(method: RpcMethod, collector: "_Collector", *, is_secure: bool) -> Callable[[object, Context], Any]:
    async def run(_messages: object, context: Context) -> bytes | None:
        rpc = None
        try:
            if method.refuse is not None and (status := method.refuse(method.name, 0)) is not None:
                await context.abort(_CODES[status.code], status.message, tuple(status.trailers))
            rpc = GrpcAioRpc(method.name, context, collector, is_unary=method.is_unary, is_secure=is_secure)
            await method.handle(rpc)
            return await rpc.finish()
        except grpc.aio.AbortError as error:
            del _messages, context, rpc  # row 2
            raise error.with_traceback(None) from None

    return run


class _Collector:
    """Collects garbage by the bytes that calls have brought, and not by objects alone (row 3)."""

    def __init__(self) -> None:
        self._uncollected_bytes = 0

    def add(self, seen_bytes: int) -> None:
        """Count bytes that a call has brought."""
        self._uncollected_bytes += seen_bytes
        if self._uncollected_bytes > _UNCOLLECTED_BYTES_MAX:
            self._uncollected_bytes = 0
            gc.collect()


_PENDING_PER_CALL: Final = 4
_PENDING_MAX: Final = 2000
"""For a small `calls_max`: twenty connections with all their streams."""


def count_pending_max(settings: Settings) -> int:
    """Return how many calls may wait in the core for a handler (row 8).

    Most of them would be refused for `calls_max`; each holds up to 80 KiB.
    """
    return max(_PENDING_PER_CALL * settings.calls_max, _PENDING_MAX)


_ENCODING_BITS: Final = {"deflate": 1 << 1, "gzip": 1 << 2}
_NO_ENCODING_BIT: Final = 1 << 0


def list_options(settings: Settings, *, reuse_port: bool) -> list[tuple[str, int]]:
    """Return the options of a server."""
    connections = settings.connections
    pending_max = count_pending_max(settings)
    return [
        ("grpc.max_receive_message_length", settings.request_bytes_max),
        ("grpc.max_send_message_length", _RESPONSE_BYTES_UNLIMITED),
        # Far above the bridge's own limit, so that the bridge's is the one that is met (row 9).
        ("grpc.max_metadata_size", 4 * METADATA_BYTES_MAX),
        ("grpc.absolute_max_metadata_size", 4 * METADATA_BYTES_MAX),
        ("grpc.http2.settings_timeout", round(connections.settings_timeout_s * 1000)),  # row 9
        ("grpc.http2.lookahead_bytes", _UNREAD_BYTES_MAX),  # row 14
        ("grpc.http2.bdp_probe", 0),
        ("grpc.compression_enabled_algorithms_bitset", _encoding_bits(connections)),
        ("grpc.max_concurrent_streams", connections.streams_max),
        ("grpc.http.overload_protection", 0),  # row 16
        ("grpc.max_allowed_incoming_connections", connections.connections_max),
        *_list_times(connections),
        ("grpc.server.max_pending_requests", pending_max * 3 // 4),  # row 8; beyond it, some are cancelled
        ("grpc.server.max_pending_requests_hard_limit", pending_max),  # and beyond this, all
        ("grpc.so_reuseport", int(reuse_port)),  # row 11
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),  # row 10
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def _encoding_bits(connections: ConnectionSettings) -> int:
    return _NO_ENCODING_BIT | sum(_ENCODING_BITS[name] for name in set(connections.encodings))


def _list_times(connections: ConnectionSettings) -> list[tuple[str, int]]:
    """Return the options of age, idleness and pings. grpc varies an age by a tenth, which spreads reconnects."""
    times_s = {
        "grpc.max_connection_age_ms": connections.age_s,
        "grpc.max_connection_age_grace_ms": connections.age_grace_s,
        "grpc.max_connection_idle_ms": connections.idle_s,
        "grpc.keepalive_time_ms": connections.ping_s,
        "grpc.keepalive_timeout_ms": connections.ping_timeout_s,
    }
    return [(name, round(time_s * 1000)) for name, time_s in times_s.items() if time_s]


async def stop_server(server: grpc.aio.Server, boundary: Boundary, *, hold_s: float = STOP_HOLD_S) -> None:
    """Stop a server that drains; calls still handed over meanwhile are refused after the stop has begun (row 1)."""
    with boundary.drain.delay_refusals():
        await _wait_for_quiet(boundary, hold_s)
        stopping = asyncio.create_task(server.stop(_STOP_S_MAX))
        await _wait_for_quiet(boundary, hold_s)
    await asyncio.wait({stopping}, timeout=_STATUS_FLUSH_S)
    await server.stop(None)
    await stopping


async def _wait_for_quiet(boundary: Boundary, hold_s: float) -> None:
    """Wait until the core hands over no more calls. If the hold itself ends late, so may the core be with a call."""
    for _ in range(_STOP_HOLDS_MAX):
        refusals, started_at = boundary.drain.refusals, time.monotonic()
        await asyncio.sleep(hold_s)
        late_s = time.monotonic() - started_at - hold_s
        if boundary.drain.refusals == refusals and late_s < _STOP_LATE_S:
            return


_CALLERS_FAULTS: Final = frozenset({"ExecuteBatchError", "UnicodeDecodeError"})


def is_loggable(record: logging.LogRecord) -> bool:
    """Return whether a record may be logged: not what grpc's core logs, with a stack, of callers' doings (row 12).

    A caller who disconnects while a write waits has cancelled; bytes that are no text are quoted whole, though they may
    be a key. The call has a line of its own.
    """
    kind = record.exc_info[0] if record.exc_info else None
    return not (record.name.startswith("grpc._cython") and kind is not None and kind.__name__ in _CALLERS_FAULTS)
