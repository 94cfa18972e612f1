"""Imports point one way, and core is pure; read from the source, so that nothing has to be run to know."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "bridge"

# What each module may import of ours. Whoever adds a module gives it a line, and so its place.
CORE_GROUND = {"core.errors", "core.sse", "core.codec"}
CORE_TABLES = {"core.dialect", "core.headers", "core.validate"}
CORE = CORE_GROUND | CORE_TABLES | {"core.refrain", "core.chat"}
LEAVES = {"settings", "telemetry"}
BACKENDS = {f"telemetry.{name}" for name in ("failures", "logs", "metrics", "spans")}
TELEMETRY = BACKENDS | {"telemetry.tracing"}
ALLOWED: dict[str, set[str]] = {
    "": set(),
    "core": set(),
    "core.codec": set(),
    "core.sse": set(),
    "core.refrain": set(),
    "core.errors": {"core.codec"},
    **dict.fromkeys(CORE_TABLES, CORE_GROUND),
    "core.chat": CORE_GROUND | CORE_TABLES | {"core.refrain"},
    "settings": set(),
    "telemetry": set(),
    **dict.fromkeys(BACKENDS, LEAVES),
    "telemetry.tracing": LEAVES | {"telemetry.spans"},
    "emulator": set(),
    "doorman": set(),
    "files": {"settings"},
    "engine": set(),
    "upstream": CORE | LEAVES | {"engine"},
    "service": CORE | LEAVES | {"upstream"},
    "admission": CORE | LEAVES,
    "callers": CORE | LEAVES | {"files"},
    "boundary": CORE | LEAVES | {"admission", "callers", "upstream", "service"},
    "health": CORE | LEAVES | {"boundary"},
    "listeners": LEAVES | {"files"},
    "server": {"", *CORE, *LEAVES, "callers", "files", "health", "listeners", "upstream", "service", "boundary"},
}
ALLOWED["admin"] = {"", *LEAVES, *TELEMETRY, "boundary", "doorman"}
ALLOWED["workers"] = ALLOWED["server"] | TELEMETRY | {"admin", "server"}
ALLOWED["cli"] = ALLOWED["workers"] | {"workers", "emulator"}
ALLOWED["__main__"] = {"cli"}

# What core may import of others: nothing that knows the time, the process, the network or chance. uuid parses.
PURE = {
    *("base64", "collections", "dataclasses", "datetime", "email", "enum", "functools", "http", "json", "math", "re"),
    *("typing", "urllib", "uuid", "google", "msgspec", "ollmbridge", "orjson"),
}
IMPURE_NAMES = {"uuid1", "uuid4", "now", "utcnow", "today", "open", "print", "input", "environ"}
STANDARD_ONLY = {"emulator"}
# workers sets a variable for its children, and asks for the cores; the package sets one before grpc is imported.
ENVIRONMENT_READERS = {"settings", "workers", ""}


def modules() -> dict[str, str]:
    """Give the source of every module, by its name in `bridge`."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix("__init__").removesuffix(".")] = path.read_text()
    return found


def imported(source: str) -> Iterator[str]:
    """Give the full names of what a source imports, those inside functions and under `if` too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "expected absolute imports"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def ours(source: str, known: set[str]) -> set[str]:
    """Give which of our modules a source imports."""
    found = set()
    for name in imported(source):
        if name.partition(".")[0] == "bridge":
            parts = name.split(".")[1:]
            while ".".join(parts) not in known:
                parts.pop()
            found.add(".".join(parts))
    return found


def impurities(source: str) -> list[str]:
    """Give what keeps a source from being pure."""
    found = [f"import {name}" for name in imported(source) if name.partition(".")[0] not in PURE | {"bridge"}]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith):
            found.append(type(node).__name__)
        elif isinstance(node, ast.Global | ast.Nonlocal):
            found.append("a state of the module")
        elif isinstance(node, ast.Name | ast.Attribute):
            name = node.id if isinstance(node, ast.Name) else node.attr
            if name in IMPURE_NAMES:
                found.append(name)
    return found


MODULES = modules()


def test_every_module_has_its_place():
    assert MODULES.keys() <= ALLOWED.keys()


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_one_way(name):
    assert ours(MODULES[name], set(ALLOWED)) - {name} <= ALLOWED[name]


@pytest.mark.parametrize("name", [name for name in MODULES if name.partition(".")[0] == "core"])
def test_core_is_pure(name):
    assert impurities(MODULES[name]) == []


def test_what_is_allowed_has_no_circle():
    order: list[str] = []
    left = dict(ALLOWED)
    while left:
        ready = [name for name, needs in left.items() if needs <= {*order, name}]
        assert ready, f"a circle among {sorted(left)}"
        order += ready
        for name in ready:
            del left[name]


@pytest.mark.parametrize("name", [name for name in MODULES if name not in ENVIRONMENT_READERS | {"emulator"}])
def test_only_settings_read_the_environment(name):
    assert not any(each.startswith(("os.environ", "os.getenv")) or each == "os" for each in imported(MODULES[name]))


@pytest.mark.parametrize("name", sorted(STANDARD_ONLY & MODULES.keys()))
def test_emulator_needs_the_standard_library_alone(name):
    assert {each.partition(".")[0] for each in imported(MODULES[name])} <= sys.stdlib_module_names


@pytest.mark.parametrize("name", [name for name in MODULES if name not in {"engine", "upstream", "cli", "admin"}])
def test_only_upstream_and_its_engine_know_the_http_client(name):
    clients = {"aiohttp", "httpx", "httpx2", "yarl"}
    assert not clients & {each.partition(".")[0] for each in imported(MODULES[name])}


# That the above can fail

WRONG = {
    "time": "import time",
    "asyncio in a function": "def f():\n    import asyncio",
    "os under if": "if True:\n    from os import path",
    "grpc": "from grpc import aio",
    "logging": "import logging.handlers",
    "random": "from random import random",
    "socket": "import json, socket",
    "async def": "async def f(): ...",
    "await": "async def f():\n    await g()",
    "uuid4": "import uuid\nuuid.uuid4()",
    "uuid4 by name": "from uuid import uuid4\nuuid4()",
    "the clock": "from datetime import datetime\ndatetime.now()",
    "a file": "open('x')",
    "a global": "def f():\n    global x",
}


@pytest.mark.parametrize("source", WRONG.values(), ids=WRONG)
def test_impure_source_is_found_out(source):
    assert impurities(source) != []


def test_pure_source_is_let_pass():
    assert impurities("import re, uuid\nfrom bridge.core.codec import parse\nuuid.UUID('x')") == []


IMPORTS = {
    "from the package": ("from bridge.core import chat", {"core.chat"}),
    "a name of a module": ("from bridge.core.chat import decode", {"core.chat"}),
    "a module": ("import bridge.telemetry.logs", {"telemetry.logs"}),
    "the root": ("from bridge import __version__", {""}),
    "in a function": ("def f():\n    from bridge.server import serve", {"server"}),
    "others": ("import bridges\nimport os", set()),
}


@pytest.mark.parametrize(("source", "found"), IMPORTS.values(), ids=IMPORTS)
def test_import_of_ours_is_seen_in_each_form(source, found):
    assert ours(source, set(ALLOWED)) == found
