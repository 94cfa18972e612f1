"""(b) A bare grpc.aio server on uvloop that answers from memory: the limit of the bridge's own front.

`bare.py DIRECTORY [FOLDER]`, with TLS by the folder's certificates. `reply`, `first`, `chunk` and `last` in the
directory are the bytes of the bridge's own answers. The model in the request says how many chunks and how far apart, in
the words that the upstream of the others reads.
"""

import asyncio
import functools
import re
import sys
import time
from pathlib import Path

import grpc
import uvloop

from ollmbridge.v1 import chat_completion_service_pb2 as pb

SERVICE = "ollmbridge.v1.ChatCompletionService"
CLOCKS = re.compile(rb"(\d{9,}) (\d{9,}) ")
ANSWERS = {name: Path(sys.argv[1], name).read_bytes() for name in ("reply", "first", "chunk", "last")}


def number(request: bytes, name: bytes, default: int) -> int:
    found = re.search(rb"[?&]%b=(\d+)" % name, request)
    return int(found[1]) if found else default


@functools.lru_cache
def big(content_bytes: int) -> bytes:
    reply = pb.CreateChatCompletionResponse.FromString(ANSWERS["reply"])
    reply.choices[0].message.text = "x" * content_bytes
    return reply.SerializeToString()


def set_clock(until_due_s: float) -> bytes:
    """The chunk with its clock readings, when it was due and now, for those of the kept one: they are as long."""
    now = time.monotonic_ns()
    return CLOCKS.sub(b"%d %d " % (now + int(until_due_s * 1e9), now), ANSWERS["chunk"])


async def create(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    content_bytes = number(request[:100], b"bytes", 0)
    return big(content_bytes) if content_bytes else ANSWERS["reply"]


async def stream(request: bytes, context: grpc.aio.ServicerContext) -> None:
    interval_s = number(request, b"interval_ms", 0) / 1000
    loop = asyncio.get_running_loop()
    await context.write(ANSWERS["first"])
    start = loop.time()
    for place in range(1, number(request, b"chunks", 10) + 1):
        if interval_s:
            due = start + place * interval_s
            await asyncio.sleep(due - loop.time())
            await context.write(set_clock(due - loop.time()))
        else:
            await context.write(ANSWERS["chunk"])
    await context.write(ANSWERS["last"])


def add_port(server: grpc.aio.Server, tls: str | None = None) -> int:
    if tls is None:
        return server.add_insecure_port("127.0.0.1:0")
    pair = Path(tls, "server.pem").read_bytes()
    return server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(pair, pair)]))


async def serve() -> None:
    unlimited = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)]
    server = grpc.aio.server(options=unlimited)
    handlers = {
        "CreateChatCompletion": grpc.unary_unary_rpc_method_handler(create),
        "StreamChatCompletion": grpc.unary_stream_rpc_method_handler(stream),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = add_port(server, *sys.argv[2:])
    await server.start()
    print(f"listening on 127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(serve())
