"""The cases of tests/vectors as values. What they are and how they are written is in tests/vectors/README.md."""

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent.parent / "vectors"


class Answer(NamedTuple):
    """A recorded HTTP response. `complete` says whether its body came to the end that its framing promised."""

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


def names(kind: str) -> list[str]:
    return sorted(path.stem for path in (FOLDER / kind).glob("*.http"))


@cache
def expected(kind: str) -> dict[str, Any]:
    return json.loads((FOLDER / kind / "expected.json").read_bytes())


@cache
def answer(kind: str, name: str) -> Answer:
    head, _, rest = (FOLDER / kind / f"{name}.http").read_bytes().partition(b"\r\n\r\n")
    status_line, *lines = head.decode("ascii").split("\r\n")
    headers = [(key, value.strip()) for key, _, value in (line.partition(":") for line in lines)]
    found = {key.lower(): value for key, value in headers}
    if found.get("transfer-encoding") == "chunked":
        pieces, complete = _dechunked(rest)
    else:
        pieces, complete = [rest], len(rest) == int(found.get("content-length", len(rest)))
    return Answer(int(status_line.split(" ")[1]), headers, pieces, complete)


def _dechunked(rest: bytes) -> tuple[list[bytes], bool]:
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


def requests() -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in sorted((FOLDER / "requests").glob("*.json"))}


def sse_cases() -> list[dict[str, Any]]:
    return json.loads((FOLDER / "sse" / "cases.json").read_bytes())
