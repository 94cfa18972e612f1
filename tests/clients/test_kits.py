"""A kit is small: a module or two, of at most 150 lines of code: without blank lines, comments and docstrings."""

import ast
import io
import tokenize
from pathlib import Path

import pytest

CLIENTS = Path(__file__).parents[2] / "clients"
LINES_MAX = 150
FILES = [
    file
    for pattern in (
        "python/ollmbridge_client/*.py",
        "go/kit/*.go",
        "typescript/src/kit.ts",
        "connect/src/kit.ts",
        "connect/src/accumulate.ts",
        "java/src/main/java/ollmbridge/kit/*.java",
        "rust/src/kit.rs",
        "rust/src/accumulate.rs",
    )
    for file in sorted(CLIENTS.glob(pattern))
]


def count_lines(path: Path) -> int:
    """Return the number of lines with code."""
    source = path.read_text(encoding="utf-8")
    return len(list_python_lines(source) if path.suffix == ".py" else list_other_lines(source))


def list_python_lines(source: str) -> set[int]:
    blank = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in blank:
            found.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            found -= set(range(node.lineno, (node.end_lineno or 0) + 1))
    return found


def list_other_lines(source: str) -> list[str]:
    """Return the lines of a language whose comments begin with //, or stand alone in /* */."""
    found, is_comment = [], False
    for line in map(str.strip, source.splitlines()):
        is_comment = is_comment or line.startswith("/*")
        if line and not is_comment and not line.startswith("//"):
            found.append(line)
        is_comment = is_comment and not line.endswith("*/")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(CLIENTS).as_posix())
def test_kit_is_small(file):
    assert count_lines(file) <= LINES_MAX


def test_lines_of_code_are_counted():
    source = '"""Doc\nstring."""\n\n# why\nx = """a\n\nb"""  # c\n\ndef f():\n    """Doc."""\n    return (\n\n1)\n'
    assert sorted(list_python_lines(source)) == [5, 6, 7, 9, 11, 13]
    source = "// a\n/* b\n c */\n/** d */\nint x; // e\n\n  }\n"
    assert list_other_lines(source) == ["int x; // e", "}"]
