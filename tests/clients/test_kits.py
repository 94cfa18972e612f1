"""A kit is small: no file of it has more than 150 lines, and TypeScript's is one file."""

from pathlib import Path

import pytest

CLIENTS = Path(__file__).parents[2] / "clients"
LINES_MAX = 150
PATTERNS = (
    "python/ollmbridge_client/*.py",
    "go/kit/*.go",
    "typescript/src/kit.ts",
    "connect/src/kit.ts",
    "connect/src/accumulate.ts",
    "java/src/main/java/ollmbridge/kit/*.java",
    "rust/src/kit.rs",
    "rust/src/accumulate.rs",
)
FILES = [file for pattern in PATTERNS for file in sorted(CLIENTS.glob(pattern))]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(CLIENTS).as_posix())
def test_file_of_a_kit_is_small(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= LINES_MAX


def test_every_pattern_names_a_file():
    assert [pattern for pattern in PATTERNS if not any(CLIENTS.glob(pattern))] == []
