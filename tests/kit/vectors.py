"""The cases of tests/vectors as values; tests/vectors/README.md says what they are and how they are written.

And the lines of clients/vectors, which every kit of clients/ reads.
"""

import base64
import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ollmbridge.v1.chat_completion_service_pb2 import StreamChatCompletionResponse

FOLDER = Path(__file__).parents[1] / "vectors"
CLIENTS_FOLDER = Path(__file__).parents[2] / "clients" / "vectors"


class Answer(NamedTuple):
    """A recorded HTTP response. `complete`: its body came to the end that its framing promised."""

    status: int
    headers: list[tuple[str, str]]
    pieces: list[bytes]
    complete: bool

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def content_type(self) -> str:
        return next((value for name, value in self.headers if name.lower() == "content-type"), "")


def list_names(kind: str) -> list[str]:
    return sorted(path.stem for path in (FOLDER / kind).glob("*.http"))


@cache
def read_expected(kind: str) -> dict[str, Any]:
    return json.loads((FOLDER / kind / "expected.json").read_bytes())


@cache
def read_answer(kind: str, name: str) -> Answer:
    head, _, rest = (FOLDER / kind / f"{name}.http").read_bytes().partition(b"\r\n\r\n")
    status_line, *lines = head.decode("ascii").split("\r\n")
    headers = [(key, value.strip()) for key, _, value in (line.partition(":") for line in lines)]
    found = {key.lower(): value for key, value in headers}
    if found.get("transfer-encoding") == "chunked":
        pieces, complete = _split_chunks(rest)
    else:
        pieces, complete = [rest], len(rest) == int(found.get("content-length", len(rest)))
    return Answer(int(status_line.split(" ")[1]), headers, pieces, complete)


def read_fault(name: str) -> bytes:
    """Return the bytes of a reported answer."""
    return (FOLDER / "cases" / f"{name}.txt").read_bytes()


def _split_chunks(rest: bytes) -> tuple[list[bytes], bool]:
    pieces = []
    while rest:
        size_text, _, rest = rest.partition(b"\r\n")
        size = int(size_text, 16)
        if not size:
            return pieces, True
        piece, end, rest = rest[:size], rest[size : size + 2], rest[size + 2 :]
        assert (len(piece), end) == (size, b"\r\n")
        pieces.append(piece)
    return pieces, False


def read_requests() -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in sorted((FOLDER / "requests").glob("*.json"))}


def read_sse_cases() -> list[dict[str, Any]]:
    return json.loads((FOLDER / "sse" / "cases.json").read_bytes())


def read_client_vectors(kind: str) -> list[dict[str, Any]]:
    """Return the lines of `accumulate` or `failure`."""
    return [json.loads(line) for line in (CLIENTS_FOLDER / f"{kind}.jsonl").read_text(encoding="utf-8").splitlines()]


def decode_chunks(vector: dict[str, Any]) -> list[StreamChatCompletionResponse]:
    return [StreamChatCompletionResponse.FromString(base64.b64decode(chunk)) for chunk in vector["chunks"]]
