"""Imports point one way between the folders of bridge/, and core is pure; read from the source without running it."""

import ast
import functools
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "bridge"

# Our modules that each folder (or module beside the folders) may import, besides itself. The root, "", has the version.
ALLOWED: dict[str, set[str]] = {
    "": set(),
    "core": set(),
    "settings": set(),
    "http_server": set(),
    "tcp": set(),
    "emulator": {"tcp"},
    "reload": {"core", "settings"},
    "telemetry": {"core", "settings"},
    "upstream": {"core", "settings", "reload"},
    "server": {"", "core", "settings", "reload", "tcp", "telemetry", "upstream", "http_server"},
    "admin": {"", "core", "settings", "tcp", "telemetry", "http_server"},
    "process": {"", "core", "settings", "reload", "telemetry", "upstream", "http_server", "server", "admin"},
}
ALLOWED["cli"] = {*ALLOWED, "cli"}
ALLOWED["__main__"] = {"cli"}

# Other modules that core may import: none that uses the time, the process, the network or chance. uuid parses.
PURE = {
    *(
        "base64",
        "collections",
        "dataclasses",
        "datetime",
        "decimal",
        "email",
        "enum",
        "functools",
        "http",
        "itertools",
        "json",
        "math",
        "re",
    ),
    *("typing", "urllib", "uuid", "google", "msgspec", "ollmbridge", "orjson"),
}
IMPURE_NAMES = {"uuid1", "uuid4", "now", "utcnow", "today", "open", "print", "input", "environ"}
# process sets a variable for its children and reads the number of cores; the root sets one before grpc is imported.
ENVIRONMENT_READERS = {"settings", "process", "", "emulator"}
# Modules that may import grpc: the transport and the modules beside it, and commands that are clients.
GRPC_USERS = {
    *("server.grpc_aio", "server.edges", "server.listeners", "server.health", "server.side_services"),
    *("cli.channels", "cli.chat", "cli.explain"),
}
LINES_MAX = 400
EMULATOR_NEEDS = {*sys.stdlib_module_names, "bridge", "h11"}


def read_modules() -> dict[str, str]:
    """Return the source of every module, by its name in `bridge`."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix("__init__").removesuffix(".")] = path.read_text()
    return found


def find_imports(source: str) -> Iterator[str]:
    """Yield the full names that a source imports, in functions and under `if` too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "expected absolute imports"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def find_own_imports(source: str, known: set[str]) -> set[str]:
    """Return the modules of bridge that a source imports."""
    found = set()
    for name in find_imports(source):
        if name.partition(".")[0] == "bridge":
            parts = name.split(".")[1:]
            while ".".join(parts) not in known:
                parts.pop()
            found.add(".".join(parts))
    return found


def get_folder(name: str) -> str:
    return name.partition(".")[0]


def find_circle(needs: Mapping[str, set[str]]) -> list[str]:
    """Return the names that can't be ordered so that each comes after all that it needs."""
    left = {name: others - {name} for name, others in needs.items()}
    while ready := [name for name, others in left.items() if not others & left.keys()]:
        for name in ready:
            del left[name]
    return sorted(left)


def find_impurities(source: str) -> list[str]:
    """Return the imports and names for which a source is not pure."""
    found = [f"import {name}" for name in find_imports(source) if name.partition(".")[0] not in PURE | {"bridge"}]
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


MODULES = read_modules()


@functools.cache
def list_needs() -> dict[str, set[str]]:
    """Return the modules that each module imports."""
    return {name: find_own_imports(source, set(MODULES)) for name, source in MODULES.items()}


def test_every_folder_has_a_rule():
    assert {get_folder(name) for name in MODULES} <= ALLOWED.keys()


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_one_way(name):
    assert {get_folder(other) for other in list_needs()[name]} - {get_folder(name)} <= ALLOWED[get_folder(name)]


def test_rules_allow_no_circle():
    assert find_circle(ALLOWED) == []


def test_modules_have_no_circle():
    # Modules of a package do not import from its __init__.
    assert find_circle(list_needs()) == []


@pytest.mark.parametrize("name", [name for name in MODULES if get_folder(name) == "core"])
def test_core_is_pure(name):
    assert find_impurities(MODULES[name]) == []


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("server.h2.")])
def test_http2_is_pure(name):
    """Beside what core may, it reads numbers from bytes; and it is told the time as `now`."""
    assert set(find_impurities(MODULES[name])) <= {"import struct.Struct", "import struct", "now"}


@pytest.mark.parametrize("name", [name for name in MODULES if get_folder(name) not in ENVIRONMENT_READERS])
def test_only_settings_read_the_environment(name):
    assert not any(each.startswith(("os.environ", "os.getenv")) or each == "os" for each in find_imports(MODULES[name]))


@pytest.mark.parametrize("name", [name for name in MODULES if get_folder(name) == "emulator"])
def test_emulator_shares_no_code_with_the_bridge(name):
    assert {each.partition(".")[0] for each in find_imports(MODULES[name])} <= EMULATOR_NEEDS


@pytest.mark.parametrize("name", [name for name in MODULES if get_folder(name) not in {"upstream", "cli"}])
def test_only_upstream_imports_an_http_client(name):
    clients = {"aiohttp", "httptools", "httpx", "httpx2", "yarl"}
    if name == "server.web_connection":  # its parser of requests is httptools'
        clients.remove("httptools")
    assert not clients & {each.partition(".")[0] for each in find_imports(MODULES[name])}


@pytest.mark.parametrize("name", [name for name in MODULES if name not in GRPC_USERS])
def test_only_the_transport_and_clients_import_grpc(name):
    assert "grpc" not in {each.partition(".")[0] for each in find_imports(MODULES[name])}


@pytest.mark.parametrize("name", MODULES)
def test_no_module_is_too_long(name):
    assert MODULES[name].count("\n") <= LINES_MAX


# These rules can fail

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
def test_impure_source_is_found(source):
    assert find_impurities(source) != []


def test_pure_source_is_accepted():
    assert find_impurities("import re, uuid\nfrom bridge.core.json_text import parse\nuuid.UUID('x')") == []


def test_circle_is_found():
    assert find_circle({"a": {"b"}, "b": {"a"}, "c": {"a"}, "d": set()}) == ["a", "b", "c"]


IMPORTS = {
    "from the package": ("from bridge.core import chat", {"core.chat"}),
    "a name of a module": ("from bridge.core.chat import decode_reply", {"core.chat"}),
    "a module": ("import bridge.telemetry.logs", {"telemetry.logs"}),
    "the root": ("from bridge import __version__", {""}),
    "in a function": ("def f():\n    from bridge.server.server import run_server", {"server.server"}),
    "others": ("import bridges\nimport os", set()),
}


@pytest.mark.parametrize(("source", "expected"), IMPORTS.values(), ids=IMPORTS)
def test_own_import_is_found_in_each_form(source, expected):
    assert find_own_imports(source, set(MODULES)) == expected
