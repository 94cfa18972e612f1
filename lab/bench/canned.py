"""An upstream that costs next to nothing: whole HTTP answers, made once, written at once.

`python -m lab.bench.canned [FOLDER]`, by TLS with the certificates of a folder. Its answers have the shape that the
gateway's have on the wire, an HTTP chunk an event. A model named as for the emulator chooses the answer:
`scenario::many?chunks=N&bytes=N` a stream of so many chunks beside the first and the last, with `&kind=` of another
delta than text; `scenario::big?bytes=N` a message of so many bytes; every other an ordinary answer. A request is read
to its end before it is answered. The harness prints what share of its core this took.
"""

import asyncio
import functools
import json
import re
import ssl
import sys

import uvloop

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
OPTION = re.compile(rb'"scenario::\w+\?([^"]*)"')
STREAM = re.compile(rb'"stream" *: *true')

COMMON = {
    "id": "01a2063e-33bc-7062-ad31-91f613744029",
    "episode_id": "01a2063e-33bc-7062-ad31-920a42dbe772",
    "created": 1795401069,
    "model": "ollm::model_name::near_qwen3_30b",
    "system_fingerprint": "",
    "service_tier": None,
}
USAGE = {"prompt_tokens": 24, "completion_tokens": 100, "total_tokens": 124}
SENTENCE = "A bridge carries its load to its piers, and the piers carry it into the ground. "


def event(delta: dict[str, object], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "finish_reason": finish_reason, "logprobs": None, "delta": delta}
    usage = USAGE if finish_reason else None
    document = COMMON | {"choices": [choice], "object": "chat.completion.chunk", "usage": usage}
    return http_chunk(f"data: {json.dumps(document, separators=(',', ':'))}\n\n".encode())


def http_chunk(data: bytes) -> bytes:
    return b"%X\r\n%b\r\n" % (len(data), data)


def reply(content: str) -> bytes:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
    document = COMMON | {"choices": [choice], "object": "chat.completion", "usage": USAGE}
    return json.dumps(document, separators=(",", ":")).encode()


def delta(kind: str, text: str) -> dict[str, object]:
    """Return what a chunk adds: text, reasoning or a tool call's arguments."""
    if kind == "arguments":
        return {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}
    return {kind: text}


@functools.lru_cache(maxsize=32)
def answer(options: bytes, *, streamed: bool) -> bytes:
    chosen = dict(re.findall(r"(chunks|bytes|kind)=(\w+)", options.decode()))
    if streamed:
        text = "x" * int(chosen.get("bytes", 16))
        middle = event(delta(chosen.get("kind", "content"), text)) * int(chosen.get("chunks", 10))
        events = (
            event({"role": "assistant", "content": ""}) + middle + event({}, "stop") + http_chunk(b"data: [DONE]\n\n")
        )
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        return head + events + b"0\r\n\r\n"
    body = reply("x" * int(chosen["bytes"]) if "bytes" in chosen else SENTENCE * 5)
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


class Connection(asyncio.Protocol):
    """One kept connection; requests come one after the other."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.pending = bytearray()
        self.missing = 0

    def data_received(self, data: bytes) -> None:
        self.pending += data
        self.missing -= len(data)
        if self.missing > 0:
            return
        while (head_end := self.pending.find(b"\r\n\r\n")) >= 0:
            length = LENGTH.search(self.pending, 0, head_end)
            end = head_end + 4 + (int(length[1]) if length else 0)
            if len(self.pending) < end:
                self.missing = end - len(self.pending)
                return
            options = OPTION.search(self.pending, head_end, end)
            streamed = STREAM.search(self.pending, head_end, end) is not None
            self.transport.write(answer(bytes(options[1]) if options else b"", streamed=streamed))
            del self.pending[:end]
        self.missing = 0


def load_tls(folder: str | None = None) -> ssl.SSLContext | None:
    if folder is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(f"{folder}/server.pem")
    return context


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0, ssl=load_tls(*sys.argv[1:]))
    host, port = server.sockets[0].getsockname()
    print(f"listening on {host}:{port}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve())
