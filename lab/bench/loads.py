"""The loads: one table for all contenders, and real calls that check the answers."""

import json
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import grpc

from lab.bench.processes import BenchmarkError, Process
from ollmbridge.v1 import chat_completion_service_pb2 as pb
from ollmbridge.v1 import chat_completion_service_pb2_grpc as pb_grpc
from ollmbridge.v1.chat_pb2 import MessageDelta
from tests.kit.oracle import split_events

__all__ = ["HEADERS", "SERVICE", "Load", "keep_answers", "verify"]

CALL_S_MAX = 300
SERVICE = "/ollmbridge.v1.ChatCompletionService/"
HEADERS = {"content-type": "application/json", "authorization": "Bearer none"}
"""Of a request to an HTTP gateway."""
UNLIMITED = [("grpc.max_receive_message_length", -1)]
TEXT = "Tell me about bridges, and how they carry their load."


@dataclass(frozen=True)
class Load:
    """Calls of one kind. `model` says what the upstream answers; `chunks` are those between the first and the last.

    `kind` is what a chunk's delta has: `content`, `reasoning_content`, or a tool call's `arguments`.
    """

    model: str
    chunks: int = 0
    kind: str = "content"
    messages: int = 2
    text: str = TEXT
    at_once: int = 32

    @classmethod
    def unary(cls, *, messages: int = 2, text: str = TEXT, at_once: int = 32) -> "Load":
        return cls("echo", messages=messages, text=text, at_once=at_once)

    @classmethod
    def big(cls, content_bytes: int) -> "Load":
        """An answer with so many bytes of content."""
        return cls(f"scenario::big?bytes={content_bytes}", at_once=1)

    @classmethod
    def fast(cls, chunks: int = 500, at_once: int = 8, kind: str = "content") -> "Load":
        """Chunks of 16 bytes of text, as fast as they are taken."""
        return cls(f"scenario::many?chunks={chunks}&bytes=16&kind={kind}", chunks, kind, at_once=at_once)

    @classmethod
    def paced(cls, chunks: int, interval_ms: int, at_once: int = 20) -> "Load":
        return cls(f"scenario::pace?chunks={chunks}&interval_ms={interval_ms}", chunks, at_once=at_once)

    def read_text(self, delta: MessageDelta) -> str:
        """Return the text that a chunk of this load has."""
        if self.kind == "arguments":
            return delta.tool_calls[0].function.arguments if delta.tool_calls else ""
        text: str = getattr(delta, self.kind)
        return text

    @property
    def streamed(self) -> bool:
        return self.chunks > 0

    @property
    def units(self) -> int:
        """The units of one call: its chunks, or 1."""
        return self.chunks + 2 if self.streamed else 1

    @property
    def method(self) -> str:
        return SERVICE + ("StreamChatCompletion" if self.streamed else "CreateChatCompletion")

    def request(self) -> pb.CreateChatCompletionRequest:
        made = pb.CreateChatCompletionRequest(model=self.model, temperature=0.7, max_tokens=100)
        for number in range(self.messages):
            made.messages.add(role="assistant" if number % 2 else "user", text=self.text)
        return made

    def frame(self) -> bytes:
        """The request as gRPC frames it: not compressed, its length, its bytes."""
        message = self.request().SerializeToString()
        return b"\0" + len(message).to_bytes(4) + message

    def document(self) -> bytes:
        """The same request to an HTTP gateway."""
        made = self.request()
        messages = [{"role": message.role, "content": message.text} for message in made.messages]
        sampling = {"temperature": made.temperature, "max_tokens": made.max_tokens}
        return json.dumps({"model": self.model, "messages": messages, "stream": self.streamed, **sampling}).encode()


def verify(server: Process, load: Load, protocol: str) -> int:
    """Make one real call, and return its answer's size as h2load counts it. Raises BenchmarkError if it is wrong.

    h2load knows nothing of grpc-status; afterwards each of its runs must have brought so many answers of that size.
    """
    return _verify_grpc(server, load) if protocol == "grpc" else _verify_http(server.address, load)


def _open_channel(server: Process) -> grpc.Channel:
    if server.tls is None:
        return grpc.insecure_channel(server.address, options=UNLIMITED)
    credentials = grpc.ssl_channel_credentials((server.tls / "ca.pem").read_bytes())
    return grpc.secure_channel(server.address, credentials, options=UNLIMITED)


def _verify_grpc(server: Process, load: Load) -> int:
    address = server.address
    with _open_channel(server) as channel:
        stub = pb_grpc.ChatCompletionServiceStub(channel)
        if load.streamed:
            chunks = list(stub.StreamChatCompletion(load.request(), timeout=CALL_S_MAX))
            contents = [load.read_text(chunk.choices[0].delta) for chunk in chunks[1:-1]]
            _hold(address, load, len(contents), all(contents) and chunks[-1].choices[0].finish_reason == "stop")
            return sum(chunk.ByteSize() + 5 for chunk in chunks)
        reply = stub.CreateChatCompletion(load.request(), timeout=CALL_S_MAX)
        choice = reply.choices[0]
        _hold(
            address, load, 0, bool(choice.message.text and choice.finish_reason == "stop" and reply.usage.total_tokens)
        )
        return reply.ByteSize() + 5


def _verify_http(address: str, load: Load) -> int:
    request = urllib.request.Request(f"http://{address}/v1/chat/completions", load.document(), HEADERS)
    with urllib.request.urlopen(request, timeout=CALL_S_MAX) as answer:
        body = answer.read()
    if load.streamed:
        *chunks, last = [data for _, data in split_events(body)] or [b""]
        events = [json.loads(data) for data in chunks]
        if wrong := [each for each in events if "choices" not in each]:
            raise BenchmarkError(f"expected chunks from {address}, found {wrong[0]}")
        contents = [each["choices"][0]["delta"].get("content") for each in events]
        good = events[-1]["choices"][0]["finish_reason"] == "stop" and last == b"[DONE]"
        _hold(address, load, sum(map(bool, contents)), good)
    else:
        choice = json.loads(body)["choices"][0]
        _hold(address, load, 0, bool(choice["message"]["content"]) and choice["finish_reason"] == "stop")
    return len(body)


def _hold(address: str, load: Load, chunks: int, good: bool) -> None:  # noqa: FBT001
    if chunks != load.chunks or not good:
        raise BenchmarkError(
            f"expected a whole answer with {load.chunks} chunks to {load.model} from {address}, found {chunks}"
        )


def keep_answers(bridge: Process, stream: Load, files: Path) -> None:
    """Keep the bridge's own answers for (b) to give."""
    with _open_channel(bridge) as channel:
        stub = pb_grpc.ChatCompletionServiceStub(channel)
        reply = stub.CreateChatCompletion(Load.unary().request(), timeout=CALL_S_MAX)
        chunks = list(stub.StreamChatCompletion(stream.request(), timeout=CALL_S_MAX))
    for name, message in {"reply": reply, "first": chunks[0], "chunk": chunks[1], "last": chunks[-1]}.items():
        (files / name).write_bytes(message.SerializeToString())
