"""What is fuzzed, and the inputs that are kept of it: corpus/TARGET.txt, one a line, as Python writes bytes.

A target is a module of this folder with two functions: `check(data)` asserts what must hold of any bytes,
`seeds()` gives inputs made from tests/vectors. `mutate`, where a target has it, changes an input and keeps its form.
"""

import ast
from collections.abc import Iterable
from pathlib import Path

__all__ = ["CORPUS", "TARGETS", "keep", "kept"]

TARGETS = ("sse", "stream", "reply", "request", "headers", "errors", "connection")

CORPUS = Path(__file__).parent / "corpus"


def kept(name: str) -> list[bytes]:
    """Give a target's kept inputs."""
    return [ast.literal_eval(line) for line in (CORPUS / f"{name}.txt").read_text(encoding="ascii").splitlines()]


def keep(name: str, inputs: Iterable[bytes]) -> None:
    """Keep these inputs of a target instead, the shortest first."""
    lines = [f"{data!r}\n" for data in sorted(set(inputs), key=lambda data: (len(data), data))]
    (CORPUS / f"{name}.txt").write_text("".join(lines), encoding="ascii")
