"""A client that reads HTTP by hand, so that the emulator's tests rest on no library that could mend what it sends."""

import asyncio
import contextlib
import json
from typing import Any, NamedTuple

HELLO = [{"role": "user", "content": "Hello there"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"location": {"type": "string"}, "days": {"type": "integer"}}},
    },
}
CLOCK = {"type": "function", "function": {"name": "get_time", "parameters": {}}}


def request(**changes: Any) -> dict[str, Any]:
    return {"model": "echo", "messages": HELLO} | changes


def ollm(name: str, value: Any) -> dict[str, Any]:
    return request(**{f"ollm::{name}": value})


class Response(NamedTuple):
    status: int
    headers: dict[str, str]
    pieces: list[bytes]  # HTTP chunks, or the body
    whole: bool  # whether the body ended as HTTP says it must

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One connection, and requests on it."""

    def __init__(self, port: int, *, limit: int = 2**27) -> None:
        self._port, self._limit = port, limit

    async def __aenter__(self):
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port, limit=self._limit)
        return self

    async def __aexit__(self, *_):
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    def send(self, body: Any = None, *headers: str, method="POST", path="/v1/chat/completions"):
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", "Host: emulator", f"Content-Length: {len(data)}", *headers]
        self.writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + data)

    async def post(self, body: Any, *headers: str) -> Response:
        self.send(body, *headers)
        return await self.receive()

    async def get(self, path: str, *headers: str, method="GET") -> Response:
        self.send(None, *headers, method=method, path=path)
        return await self.receive(omits_body=method == "HEAD")

    async def receive(self, *, omits_body: bool = False) -> Response:
        status, headers = await self.receive_head()
        if omits_body:
            return Response(status, headers, [], whole=True)
        if "content-length" in headers:
            body = await self.reader.readexactly(int(headers["content-length"]))
            return Response(status, headers, [body], whole=True)
        pieces: list[bytes] = []
        try:
            while (piece := await self.receive_piece()) is not None:
                pieces.append(piece)
        except (asyncio.IncompleteReadError, ConnectionResetError):
            return Response(status, headers, pieces, whole=False)
        return Response(status, headers, pieces, whole=True)

    async def receive_head(self) -> tuple[int, dict[str, str]]:
        text = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = text.rstrip().split("\r\n")
        return int(first.split()[1]), dict(line.split(": ", 1) for line in lines)

    async def receive_piece(self) -> bytes | None:
        """Return the next HTTP chunk; None after the last."""
        size = int(await self.reader.readuntil(b"\r\n"), 16)
        data = (await self.reader.readexactly(size + 2))[:size]
        return data or None
