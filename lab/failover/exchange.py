"""A request at the faulty provider, and what it can be answered with: an error, or the words of one fixed answer."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

__all__ = ["ANSWER", "FULL", "QUICK", "Attempt", "Exchange", "Timing"]

ANSWER = (
    "A bridge is judged on the day of the flood, not on the day of the ribbon. When the water comes, it either carries "
    "every cart to the other bank, or it closes its gate and says so plainly. What it must never do is let half a cart "
    "pass and call the load delivered, nor keep the carters waiting."
)
"""Every good answer, so that a part of it is known as such: sixty words."""
_WORDS = ANSWER.split()


@dataclass(frozen=True)
class Timing:
    """How long the faults take, the bridge's own limit on the time without data, and a caller's first backoff."""

    retry_after_s: int = 2
    first_word_s: float = 20.0
    stall_s: float = 30.0
    silence_s: float = 120.0
    outage_s: float = 60.0
    word_s: float = 0.015
    limit_s: float = 30.0
    calls: int = 20
    call_interval_s: float = 4.0
    backoff_s: float = 0.5


FULL = Timing()
QUICK = Timing(2, 3.0, 4.0, 15.0, 6.0, 0.005, 5.0, 10, 1.2)


@dataclass
class Attempt:
    """A request that came: when, for which model, whether it ends with the assistant's words, and what was done."""

    at_s: float
    model: str
    is_prefilled: bool
    action: str = ""


@dataclass
class Exchange:
    """A request and its connection. `number` counts the requests for its model from 1."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    attempt: Attempt
    number: int
    wants_usage: bool
    timing: Timing

    async def send_error(self, status: int, code: str | None, message: str, headers: str = "") -> None:
        """Send an error envelope."""
        self.attempt.action = str(status)
        kind = {400: "invalid_request_error", 429: "rate_limit_error"}.get(status, "server_error")
        body = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})
        head = f"HTTP/1.1 {status} No\r\ncontent-type: application/json\r\n{headers}content-length: {len(body)}\r\n\r\n"
        await self._send((head + body).encode())

    async def stream(
        self, *, first_word_s: float = 0, words: int = len(_WORDS), malformed_at: int = -1, sends_done: bool = True
    ) -> None:
        """Stream the answer; without its end if it is cut to its first `words`."""
        self.attempt.action = "200"
        await self._send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        await asyncio.sleep(first_word_s)
        await self._send_chunk({"role": "assistant", "content": ""})
        for number, word in enumerate(_WORDS[:words]):
            if number == malformed_at:
                await self._send_event('{"id": "x", "choices": [{"delta": {"content": ')
            await self._send_chunk({"content": f" {word}" if number else word})
            await asyncio.sleep(self.timing.word_s)
        if words == len(_WORDS):
            await self._end_stream(sends_done=sends_done)

    async def _end_stream(self, *, sends_done: bool) -> None:
        await self._send_chunk({}, "stop")
        if self.wants_usage:
            usage = {"prompt_tokens": 21, "completion_tokens": len(_WORDS), "total_tokens": 21 + len(_WORDS)}
            await self._send_event(json.dumps(self._describe() | {"choices": [], "usage": usage}))
        if sends_done:
            await self._send_event("[DONE]")
        await self._send(b"0\r\n\r\n")

    async def _send_chunk(self, delta: dict[str, str], finish: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        await self._send_event(json.dumps(self._describe() | {"choices": [choice]}))

    def _describe(self) -> dict[str, Any]:
        return {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": self.attempt.model}

    async def _send_event(self, data: str) -> None:
        event = f"data: {data}\n\n".encode()
        await self._send(b"%x\r\n%s\r\n" % (len(event), event))

    async def _send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()
