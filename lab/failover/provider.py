"""A provider that fails in sixteen ways, by the name of the model, and keeps what it was asked.

The faults are those of Failover Bench (https://github.com/failoverbench/failoverbench, methodology 0.1, MIT), built
from their descriptions in its catalogue.
"""

import asyncio
import contextlib
import json
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

from bridge.tcp import close_server
from lab.failover.exchange import Attempt, Exchange, Timing
from tests.kit.upstreams import reset_on_close

__all__ = ["OK_MODEL", "STRICT_MODEL", "Provider"]

OK_MODEL = "ok"
STRICT_MODEL = "strict"
"""A model that answers too, but refuses a conversation that ends with the assistant's words."""
CUT_AFTER_WORDS = 40
STALL_AFTER_WORDS = 20
MALFORMED_AT_WORD = 10


class Provider:
    """The server. `attempts` are the requests since the last `reset`."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self.url = ""
        self.reset()

    def reset(self) -> None:
        """Forget what came, and start the outage anew."""
        self._started_at = time.monotonic()
        self._numbers: Counter[str] = Counter()
        self.attempts: list[Attempt] = []

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Serve while the block lasts."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield
        finally:
            await close_server(server)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while not writer.is_closing():
                exchange = await self._read(reader, writer)
                await FAULTS[exchange.attempt.model.partition("-")[0]](exchange)
        writer.close()

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Exchange:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        body = json.loads(await reader.readexactly(int(length[1]) if length else 0))
        model = body["model"]
        is_prefilled = body["messages"][-1]["role"] == "assistant"
        attempt = Attempt(time.monotonic() - self._started_at, model, is_prefilled)
        self.attempts.append(attempt)
        self._numbers[model] += 1
        wants_usage = bool(body.get("stream_options", {}).get("include_usage"))
        return Exchange(reader, writer, attempt, self._numbers[model], wants_usage, self._timing)


async def answer(exchange: Exchange) -> None:
    await exchange.stream()


async def refuse_prefill(exchange: Exchange) -> None:
    if exchange.attempt.is_prefilled:
        await exchange.send_error(400, "invalid_prefill", "this model can't continue an assistant's message")
    else:
        await exchange.stream()


async def limit_rate(exchange: Exchange, headers: str = "") -> None:
    await exchange.send_error(429, "rate_limit_exceeded", "too many requests", headers)


async def limit_rate_once(exchange: Exchange) -> None:
    if exchange.number > 1:
        await exchange.stream()
    else:
        await limit_rate(exchange, f"retry-after: {exchange.timing.retry_after_s}\r\n")


async def fail_once(exchange: Exchange) -> None:
    if exchange.number > 1:
        await exchange.stream()
    else:
        await exchange.send_error(500, None, "something broke")


async def refuse_load(exchange: Exchange) -> None:
    await exchange.send_error(503, "overloaded", "the engine is overloaded")


async def reset_once(exchange: Exchange) -> None:
    if exchange.number > 1:
        await exchange.stream()
        return
    exchange.attempt.action = "reset"
    reset_on_close(exchange.writer.get_extra_info("socket"))
    exchange.writer.close()


async def send_nothing(exchange: Exchange) -> None:
    exchange.attempt.action = "nothing"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(exchange.timing.silence_s):
            await exchange.reader.read(1)  # until the other side gives up
    exchange.writer.close()


async def start_late(exchange: Exchange) -> None:
    await exchange.stream(first_word_s=exchange.timing.first_word_s)


async def cut_stream(exchange: Exchange) -> None:
    await exchange.stream(words=CUT_AFTER_WORDS)
    exchange.writer.close()


async def stall_stream(exchange: Exchange) -> None:
    await exchange.stream(words=STALL_AFTER_WORDS)
    await asyncio.sleep(exchange.timing.stall_s)
    exchange.writer.close()


async def malform_event(exchange: Exchange) -> None:
    await exchange.stream(malformed_at=MALFORMED_AT_WORD)


async def omit_done(exchange: Exchange) -> None:
    await exchange.stream(sends_done=False)


async def refuse_length(exchange: Exchange) -> None:
    await exchange.send_error(400, "context_length_exceeded", "the context has at most 8192 tokens, found 9631")


async def refuse_content(exchange: Exchange) -> None:
    await exchange.send_error(400, "content_policy_violation", "the safety system rejected the request")


async def refuse_load_first(exchange: Exchange) -> None:
    if exchange.attempt.at_s < exchange.timing.outage_s:
        await refuse_load(exchange)
    else:
        await exchange.stream()


FAULTS: dict[str, Callable[[Exchange], Awaitable[None]]] = {
    OK_MODEL: answer,
    STRICT_MODEL: refuse_prefill,
    "S01": limit_rate_once,
    "S02": limit_rate,
    "S03": fail_once,
    "S04": refuse_load,
    "S05": reset_once,
    "S06": send_nothing,
    "S07": start_late,
    "S08": cut_stream,
    "S09": stall_stream,
    "S10": malform_event,
    "S11": omit_done,
    "S12": refuse_length,
    "S13": refuse_content,
    "S14": cut_stream,
    "S15": refuse_load_first,
    "S16": refuse_load,
}
"""What is done with a request, by its model."""
