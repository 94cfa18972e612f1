"""One call from its start to its record: every fact about it has its home here.

The boundary fills it in as things become known and makes the CallRecord of it at the end; `upstream` is the part that
the upstream fills in. What a call says to its caller goes through here too, so that it is counted: bytes, the time
between chunks, and what the translation took, which is the service's time less its waits for upstream and caller.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from google.protobuf.message import Message

from bridge.core.chat import ChatStream
from bridge.core.detail import find_detail
from bridge.core.errors import BridgeError
from bridge.core.headers import add_request_id, find_request_id
from bridge.core.redact import redact
from bridge.server.heartbeat import Heartbeat
from bridge.server.rpc import Rpc
from bridge.server.time_limit import TimeLimit
from bridge.telemetry import CallRecord, Observer, find_trace_id
from bridge.upstream.call import UpstreamCall
from ollmbridge.v1 import error_details_pb2 as details_pb2
from ollmbridge.v1.chat_pb2 import CompletionTokensDetails, PromptTokensDetails, Usage

if TYPE_CHECKING:
    from bridge.telemetry.spans import CallTrace

__all__ = ["RpcCall"]

_CHUNK_GAPS_MAX: Final = 64
"""Chunks that the observers are told of together: the call of an observer costs more than what it does."""
_RECORD_CHARS_MAX: Final = 200
"""Of a text that the caller chose, in a CallRecord."""
_SCANNED_CHARS_MAX: Final = 2 * 1024
"""Of such a text, how much is searched for keys: what is kept, and a long key across its end."""


class RpcCall:
    """What is known about one call.

    `interruption` is why the bridge ended it early, if it did; `has_output`, whether the caller has been sent some;
    `write_time` limits how long the caller may take nothing of the answer, None is no limit. After `heartbeat_s`
    without a message the caller of a stream gets an empty one; 0 is never.
    """

    def __init__(
        self,
        rpc: Rpc,
        observers: Sequence[Observer],
        trace: "CallTrace | None",
        write_time: "TimeLimit[RpcCall] | None" = None,
    ) -> None:
        self.rpc = rpc
        self.metadata = dict(reversed(rpc.metadata))  # the first of several values counts
        self.request_id = find_request_id(rpc.metadata) or _make_request_id()
        self.started_at = time.monotonic()
        self.trace = trace
        self._write_time = write_time
        self.caller = ""
        self.model = ""
        self.tags: Mapping[str, str] = {}
        self.identity_tags: Mapping[str, str] = {}
        self.upstream = UpstreamCall()
        self.stream: ChatStream | None = None
        self.reply_usage: Usage | None = None
        self.has_output = False
        self.request_bytes = 0
        self.response_bytes = 0
        self.heartbeat_s = 0.0
        self.interruption: BridgeError | None = None
        self._task = asyncio.current_task()
        self._observers = observers
        self._last_chunk_at = 0.0
        self._gaps_s: list[float] = []
        self._service_s: float | None = None
        self._sending_s = 0.0
        self._has_sent_headers = self._has_returned = False

    def interrupt(self, failure: BridgeError) -> None:
        """End the call from outside of its task, with this failure unless its caller ends it first."""
        if self.interruption is None and self._task is not None:
            self.interruption = failure
            self._task.cancel()

    @property
    def chunks(self) -> int:
        """How many chunks were decoded for the caller."""
        return self.stream.chunks if self.stream is not None else 0

    @property
    def usage(self) -> Usage | None:
        """The usage that the upstream told, so far."""
        return self.stream.usage if self.stream is not None else self.reply_usage

    @property
    def returned(self) -> list[tuple[str, str]]:
        """The upstream's headers that the caller gets, with the call's request id in any case."""
        return add_request_id(self.upstream.returned, self.request_id)

    # What the caller is sent

    async def send_reply(self, reply: Message, service_s: float) -> None:
        """Send a unary call's reply, which took so long. The upstream's headers go with the status, in `trailers`."""
        self._service_s = service_s
        if self.trace is not None:
            self.trace.add_completion(reply)
        data = reply.SerializeToString()
        await self.send(data)

    async def send_chunks(self, chunks: AsyncIterator[Message]) -> None:
        """Send a stream's chunks as they come, and heartbeats if the caller wants them."""
        started_at = time.monotonic()
        try:
            if self.heartbeat_s:
                async with Heartbeat(self.heartbeat_s, self._send_heartbeat) as heartbeat:
                    async for chunk in chunks:
                        async with heartbeat.hold():
                            await self._send_chunk(chunk)
            else:
                async for chunk in chunks:
                    await self._send_chunk(chunk)
        finally:
            self._service_s = time.monotonic() - started_at - self._sending_s

    async def _send_chunk(self, chunk: Message) -> None:
        now = time.monotonic()
        if self.upstream.first_chunk_at is None:
            await self._begin_stream(now)
        else:
            self._add_gap(now)
        if self.has_output and self.upstream.first_output_at is None:
            self.upstream.first_output_at = now
        self._last_chunk_at = now
        if self.trace is not None:
            self.trace.add_completion(chunk)
        await self.send(chunk.SerializeToString())
        self._sending_s += time.monotonic() - now

    async def _send_heartbeat(self) -> None:
        await self._send_headers()
        await self.send(b"")

    async def send(self, data: bytes) -> None:
        """Send a message within the time that one may wait for the caller."""
        if self._write_time is None:
            await self.rpc.send(data)
        else:
            self._write_time.start(self)
            try:
                await self.rpc.send(data, self._restart_write_time)
            finally:
                self._write_time.stop(self)
        self.response_bytes += len(data)

    def _restart_write_time(self) -> None:
        if self._write_time is not None:
            self._write_time.restart(self)

    async def _begin_stream(self, now: float) -> None:
        self.upstream.first_chunk_at = now
        if self.trace is not None:
            self.trace.add_first_chunk()
        await self._send_headers()

    async def _send_headers(self) -> None:
        """Send the initial metadata: with the first message and not before, since a client may retry until it comes.

        A heartbeat may go out before the upstream's headers are known: then they are trailers.
        """
        if self._has_sent_headers:
            return
        self._has_sent_headers = True
        self._has_returned = self.upstream.http_status is not None or not self.heartbeat_s
        await self.rpc.send_headers(self.returned if self._has_returned else ())

    def _add_gap(self, now: float) -> None:
        self._gaps_s.append(now - self._last_chunk_at)
        if len(self._gaps_s) >= _CHUNK_GAPS_MAX:
            self.flush_gaps()

    def flush_gaps(self) -> None:
        """Tell the observers of the chunks that they do not know of yet."""
        gaps_s, self._gaps_s = self._gaps_s, []
        if gaps_s:
            for observer in self._observers:
                with contextlib.suppress(Exception):  # a full disk is no reason to fail a call
                    observer.add_chunks(self.rpc.method, gaps_s)

    def trailers(self) -> list[tuple[str, str]]:
        """Return the trailers of a call that went OK."""
        upstream = self.upstream
        trailers = [] if self._has_returned else [*self.returned]
        times = (
            ("ollmbridge-upstream-ms", _between(upstream.sent_at, upstream.ended_at)),
            ("ollmbridge-first-chunk-ms", _between(upstream.sent_at, upstream.first_chunk_at)),
        )
        trailers += [(name, f"{seconds * 1000:.1f}") for name, seconds in times if seconds is not None]
        return trailers

    # What is known at the end

    def to_record(self, code: str, failure: BridgeError | None = None) -> CallRecord:
        """Return the call's record."""
        upstream = self.upstream
        usage = self.usage
        return CallRecord(
            method=self.rpc.method,
            code=code,
            reason=failure.reason_name if failure else "",
            model=_truncate(self.model),
            request_id=_truncate(self.request_id),
            peer=self.rpc.peer,
            duration_s=time.monotonic() - self.started_at,
            upstream_status=upstream.http_status,
            upstream_s=_between(upstream.sent_at, upstream.ended_at),
            first_chunk_s=_between(upstream.sent_at, upstream.first_chunk_at),
            chunks=self.chunks,
            prompt_tokens=_find_count(usage, "prompt_tokens"),
            completion_tokens=_find_count(usage, "completion_tokens"),
            request_bytes=self.request_bytes,
            response_bytes=self.response_bytes,
            translation_s=None if self._service_s is None else max(0.0, self._service_s - upstream.waited_s),
            trace_id=self.trace.trace_id if self.trace is not None else find_trace_id(self.rpc.metadata),
            caller=_truncate(self.caller),
            fault=failure.__cause__ if failure and failure.reason == details_pb2.ERROR_REASON_BRIDGE_FAULT else None,
            first_token_s=_between(upstream.sent_at, upstream.first_output_at),
            cached_tokens=_find_count(usage and usage.prompt_tokens_details, "cached_tokens"),
            cache_write_tokens=_find_count(usage and usage.prompt_tokens_details, "cache_write_tokens"),
            reasoning_tokens=_find_count(usage and usage.completion_tokens_details, "reasoning_tokens"),
            detail=find_detail(failure) if failure else "",
        )


def _find_count(usage: Usage | PromptTokensDetails | CompletionTokensDetails | None, name: str) -> int | None:
    """Return a count that the upstream told."""
    return getattr(usage, name) if usage is not None and usage.HasField(name) else None  # type: ignore[arg-type]


def _make_request_id() -> str:
    """Return a random UUID, version 4, as text; `uuid.uuid4` takes five times as long."""
    digits = f"{random.getrandbits(128):032x}"
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"


def _truncate(text: str) -> str:
    return redact(text[:_SCANNED_CHARS_MAX])[:_RECORD_CHARS_MAX]


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else end - start
