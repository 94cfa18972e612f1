"""The vectors that every kit of clients/ reads: clients/vectors/accumulate.jsonl and failure.jsonl.

`python -m tests.clients.vectors`, or `make golden`, writes the bytes of each: of the chunks, as the bridge encodes the
events of an upstream; of the status, as the bridge sends it for an upstream's answer. It changes nothing else.
"""

import base64
import json
from typing import Any

import orjson
from google.protobuf.message import Message

from bridge.core.dialect import CHUNK, REPLY
from bridge.core.errors import BridgeError
from bridge.core.http_errors import error_from_response, parse_retry_after
from bridge.core.json_text import parse
from bridge.core.source import Source
from bridge.core.status import to_grpc_status
from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionResponse, StreamChatCompletionResponse
from tests.kit import vectors
from tests.kit.oracle import split_events
from tests.kit.statuses import read_status, unpack_details

NOW_S = 1795400000.0
Vector = dict[str, Any]


def write_json(reply: CreateChatCompletionResponse) -> dict[str, Any]:
    """Return a response as the bridge's codec writes it."""
    return json.loads(orjson.dumps(REPLY.write(reply, None, [])))


def decode_response(data: str) -> dict[str, Any]:
    """Return the response in base64 bytes, as JSON."""
    return write_json(CreateChatCompletionResponse.FromString(base64.b64decode(data, validate=True)))


# Chunks


def read_recorded_events(name: str) -> list[dict[str, Any]]:
    """Return the events of a recorded stream, but for [DONE]."""
    events = split_events(vectors.read_answer("streams", name).body)
    return [json.loads(data) for _, data in events if data != b"[DONE]"]


def encode_events(events: list[dict[str, Any]]) -> list[str]:
    """Return the chunks that the bridge sends for events, as base64."""
    return [encode(_read_chunk(event)) for event in events]


def _read_chunk(event: dict[str, Any]) -> StreamChatCompletionResponse:
    value, text = parse(json.dumps(event, ensure_ascii=False).encode())
    return StreamChatCompletionResponse(**(CHUNK.read(value, Source(text), ()) or {}))


# Statuses


def encode_status(vector: Vector) -> str:
    """Return the google.rpc.Status that the bridge sends for a recorded answer, as base64."""
    answer = vectors.read_answer("errors", vector["answer"])
    error = error_from_response(
        answer.status,
        answer.body,
        content_type=answer.content_type,
        retry_after_ms=parse_retry_after(answer.headers, now_s=NOW_S),
    )
    return encode_error(error)


def encode_error(error: BridgeError) -> str:
    """Return the google.rpc.Status of an error, as base64; in each detail, maps are in order."""
    status = read_status(to_grpc_status(error, request_id="clients-vectors"))
    details = unpack_details(status).values()
    del status.details[:]
    for detail in details:
        status.details.add().Pack(detail, deterministic=True)
    return encode(status)


def encode(message: Message) -> str:
    """Return a message's bytes in base64, with maps in order."""
    return base64.b64encode(message.SerializeToString(deterministic=True)).decode()


# The files


def render(kind: str) -> str:
    """Return a file with all bytes as they must be."""
    found = vectors.read_client_vectors(kind)
    for vector in found:
        if kind == "accumulate":
            stream = vector.get("stream")
            vector["chunks"] = encode_events(read_recorded_events(stream) if stream else vector["events"])
        elif "answer" in vector:
            vector["details"] = encode_status(vector)
    return "".join(json.dumps(vector, ensure_ascii=False) + "\n" for vector in found)


def main() -> None:
    for kind in ("accumulate", "failure"):
        (vectors.CLIENTS_FOLDER / f"{kind}.jsonl").write_text(render(kind), encoding="utf-8")


if __name__ == "__main__":
    main()
