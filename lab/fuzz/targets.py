"""The targets of the fuzzer, and their saved inputs: corpus/TARGET.txt, one a line, as Python writes bytes.

A target is a module of this folder with two functions: `check(data)` asserts the properties of any bytes,
`seeds()` yields inputs built from tests/vectors. `mutate`, if a target has it, changes an input and keeps its form.
"""

import ast
from collections.abc import Iterable
from pathlib import Path

__all__ = ["CORPUS", "TARGETS", "load_inputs", "save_inputs"]

TARGETS = ("sse", "stream", "reply", "request", "headers", "errors", "connection", "blocks", "conversation", "web")

CORPUS = Path(__file__).parent / "corpus"


def load_inputs(name: str) -> list[bytes]:
    """Return a target's saved inputs."""
    return [ast.literal_eval(line) for line in (CORPUS / f"{name}.txt").read_text(encoding="ascii").splitlines()]


def save_inputs(name: str, inputs: Iterable[bytes]) -> None:
    """Replace a target's saved inputs, the shortest first."""
    lines = [f"{data!r}\n" for data in sorted(set(inputs), key=lambda data: (len(data), data))]
    (CORPUS / f"{name}.txt").write_text("".join(lines), encoding="ascii")
