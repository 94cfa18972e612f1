"""grpc.aio as a transport (`rpc.py`), and every workaround for it: nothing of its faults is known elsewhere.

Handlers are registered as if both methods took a stream of requests. For a method that takes one message grpc.aio
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
 8. Beyond 1,000 calls that wait for a handler the core cancels calls by chance, good ones too. Reported:
    grpc/grpc#34782 brought the limit. Versions: 1.60 to 1.85.1. Test: tests/e2e/test_containment.py. Delete when the
    limit refuses with a status.
 9. Between the metadata limit and the absolute one the core refuses calls by chance, and before SETTINGS is
    acknowledged not at all. Not reported that we know. Versions: 1.83.2. Test: tests/e2e/test_errors.py. Delete when
    one limit holds from the first call.
10. Clients that ping each 10 to 30 s are cut off (too_many_pings); `grpc.http2.min_recv_ping_interval…` is unknown.
    Not reported that we know. Versions: 1.83.2. Test: tests/real/test_keepalive.py. Delete when the default lets them
    live.
11. A second instance binds the same port silently (SO_REUSEPORT is on by default). Not reported that we know.
    Versions: all. Test: tests/unit/server/test_server.py. Delete when it is off by default.
12. The core logs what a peer's GOAWAY says, and with a stack what callers may do at will. Not reported that we know.
    Versions: 1.83.2. Test: tests/e2e/test_containment.py. Delete when its log is quiet on callers' faults.
13. From 1.84.0 on one request whose `:path` is not UTF-8 shuts the server down: the pin. Not reported that we know.
    Versions: 1.84.0 to 1.85.1. Test: tests/e2e/test_canary.py. Delete when that test passes with the newest release.

`listeners.py` has two more: the core unlinks a Unix socket that another process serves, and says of a bad key only
that the address can't be bound.
"""

import asyncio
import gc
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias, cast

import grpc

from bridge.core.errors import Code
from bridge.core.headers import METADATA_BYTES_MAX, Metadata
from bridge.core.reasons import SERVICE_NAME
from bridge.server.boundary import Boundary
from bridge.server.rpc import Certificate, ClientDisconnectedError, RefusedByTransportError
from bridge.settings import ConnectionSettings, Settings

__all__ = ["GrpcAioRpc", "create_handler", "is_loggable", "list_options", "stop_server"]

Context: TypeAlias = grpc.aio.ServicerContext[bytes, bytes]

_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
_NO_CERTIFICATE: Final[Certificate] = {}
_DEADLINE_SLACK_S: Final = 0.01
"""How long before the deadline, by our clock, the core may already have ended the call (row 5)."""
_REFUSAL_S: Final = 0.05
"""How long after a message's refusal by the core the handler is cancelled, at most (row 6)."""
_UNCOLLECTED_BYTES_MAX: Final = 32 * 1024 * 1024
"""Of messages and metadata, seen since garbage was last collected (row 3)."""
_RESPONSE_BYTES_UNLIMITED: Final = -1  # the upstream's limits bound it
_STATUS_FLUSH_S: Final = 1.0
"""How long statuses already sent may take to reach their callers, and open Health.Watch streams to end."""
STOP_HOLD_S: Final = 0.05
"""How long no call must come before the stop goes on: for those that the core has taken in, and for its GOAWAYs."""
_STOP_HOLDS_MAX: Final = 20


class GrpcAioRpc:
    """A call of grpc.aio's. What its context knows is copied at once: after the call's end, asking is a crash."""

    def __init__(self, method: str, context: Context, collector: "_Collector", *, is_secure: bool) -> None:
        self.method = method
        self.metadata = cast("Metadata", context.invocation_metadata() or ())
        self.peer = context.peer()
        self.certificate = context.auth_context() if is_secure else _NO_CERTIFICATE
        left_s = cast("float | None", context.time_remaining())
        self.has_deadline = left_s is not None
        self._deadline_at = None if left_s is None else time.monotonic() + left_s
        self._context = context
        self._collector = collector
        self._is_unary = method == "CreateChatCompletion"
        self._reply: bytes | None = None
        self._status: tuple[int, str, Metadata] = (Code.INTERNAL, "", ())
        collector.add(sum(map(len, itertools.chain.from_iterable(self.metadata))))

    def has_expired(self) -> bool:
        """Return whether the caller's deadline has passed."""
        return self._deadline_at is not None and time.monotonic() >= self._deadline_at - _DEADLINE_SLACK_S

    async def receive(self) -> bytes | None:
        """Return the call's message; None if the caller ended the call without one."""
        data: Any = await self._context.read()
        if data is not grpc.aio.EOF:
            self._collector.add(len(data))
            return cast("bytes", data)
        try:
            await asyncio.sleep(_REFUSAL_S)
        except asyncio.CancelledError as error:
            raise RefusedByTransportError from error
        return None

    async def send_headers(self, metadata: Sequence[tuple[str, str]]) -> None:
        """Send the initial metadata."""
        try:
            await self._context.send_initial_metadata(tuple(metadata))
        except grpc.aio.InternalError as error:
            raise ClientDisconnectedError from error

    async def send(self, message: bytes) -> None:
        """Send a message; a unary method's goes out with the status, in one batch."""
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


def create_handler(boundary: Boundary, *, is_secure: bool) -> grpc.GenericRpcHandler:
    """Return what a server finds the chat service's handlers by."""
    collector = _Collector()

    def handle(method: str) -> Callable[[object, Context], Any]:
        async def run(_messages: object, context: Context) -> bytes | None:
            rpc = GrpcAioRpc(method, context, collector, is_secure=is_secure)
            try:
                await boundary.handle(rpc)
                return await rpc.finish()
            except grpc.aio.AbortError as error:
                del _messages, context, rpc  # row 2
                raise error.with_traceback(None) from None

        return run

    methods: dict[str, Any] = {
        "CreateChatCompletion": grpc.stream_unary_rpc_method_handler(handle("CreateChatCompletion")),
        "StreamChatCompletion": grpc.stream_stream_rpc_method_handler(handle("StreamChatCompletion")),
    }
    return grpc.method_handlers_generic_handler(SERVICE_NAME, methods)


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


def list_options(settings: Settings, *, reuse_port: bool) -> list[tuple[str, int]]:
    """Return the options of a server."""
    connections = settings.connections
    return [
        ("grpc.max_receive_message_length", settings.request_bytes_max),
        ("grpc.max_send_message_length", _RESPONSE_BYTES_UNLIMITED),
        # Far above the bridge's own limit, so that the bridge's is the one that is met (row 9).
        ("grpc.max_metadata_size", 4 * METADATA_BYTES_MAX),
        ("grpc.absolute_max_metadata_size", 4 * METADATA_BYTES_MAX),
        ("grpc.max_concurrent_streams", connections.streams_max),
        ("grpc.max_allowed_incoming_connections", connections.connections_max),
        *_list_ages(connections),
        ("grpc.server.max_pending_requests", 20_000),  # row 8
        ("grpc.server.max_pending_requests_hard_limit", 30_000),
        ("grpc.so_reuseport", int(reuse_port)),  # row 11
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),  # row 10
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def _list_ages(connections: ConnectionSettings) -> list[tuple[str, int]]:
    """Return the options of age and idleness. grpc varies an age by a tenth, which spreads reconnects."""
    times_s = {
        "grpc.max_connection_age_ms": connections.age_s,
        "grpc.max_connection_age_grace_ms": connections.age_grace_s,
        "grpc.max_connection_idle_ms": connections.idle_s,
    }
    return [(name, round(time_s * 1000)) for name, time_s in times_s.items() if time_s is not None]


async def stop_server(server: grpc.aio.Server, boundary: Boundary, *, hold_s: float = STOP_HOLD_S) -> None:
    """Stop a server that drains; calls still handed over meanwhile are refused after the stop has begun (row 1)."""
    with boundary.drain.delay_refusals():
        await _wait_for_quiet(boundary, hold_s)
        stopping = asyncio.create_task(server.stop(_STATUS_FLUSH_S))
        await _wait_for_quiet(boundary, hold_s)
    await stopping


async def _wait_for_quiet(boundary: Boundary, hold_s: float) -> None:
    """Wait until the core hands over no more calls: on a busy machine that takes more than one hold."""
    for _ in range(_STOP_HOLDS_MAX):
        refusals = boundary.drain.refusals
        await asyncio.sleep(hold_s)
        if boundary.drain.refusals == refusals:
            return


_CALLERS_FAULTS: Final = frozenset({"ExecuteBatchError", "UnicodeDecodeError"})


def is_loggable(record: logging.LogRecord) -> bool:
    """Return whether a record may be logged: not what grpc's core logs, with a stack, of callers' doings (row 12).

    A caller who disconnects while a write waits has cancelled; bytes that are no text are quoted whole, though they may
    be a key. The call has a line of its own.
    """
    kind = record.exc_info[0] if record.exc_info else None
    return not (record.name.startswith("grpc._cython") and kind is not None and kind.__name__ in _CALLERS_FAULTS)
