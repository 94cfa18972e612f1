"""The house of the tests, read from their source: a test module a module, one kit, and no test module as a library.

tests/README.md says why.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What starts a process or opens a server, by the last words of its call; the kit has a function for each.
STARTERS = {
    *("create_subprocess_exec", "create_subprocess_shell", "Popen", "posix_spawn", "os.system", "os.fork"),
    *("subprocess.run", "subprocess.call", "subprocess.check_call", "subprocess.check_output", "getoutput"),
    *("start_server", "start_unix_server", "create_unix_server", "HTTPServer", "ThreadingHTTPServer", "TCPServer"),
    *("loop.create_server", "get_running_loop().create_server"),
}
# What starts without the kit, with the reason.
OWN_STARTERS = {
    # the emulator's protocol is the subject of the test, under a server of its own
    "tests/unit/emulator/test_wire.py": {"asyncio.get_running_loop().create_server"},
    # a server's end is the subject
    "tests/unit/test_tcp.py": {"asyncio.get_running_loop().create_server"},
    # a program that runs until its input ends
    "lab/bench/calling.py": {"subprocess.Popen"},
    # an upstream that is measured beside: a protocol that writes canned bytes, with no stream between
    "lab/bench/canned.py": {"asyncio.get_running_loop().create_server"},
    # servers whose connections are cut at the end, if a program hangs on one: the kit's wait for each to end
    "lab/failover/provider.py": {"asyncio.start_server"},
    "lab/torture/held.py": {"asyncio.start_server"},
    "lab/torture/chaos/caller_line.py": {"asyncio.start_server"},
    "lab/torture/chaos/upstream_line.py": {"asyncio.start_server"},
    # its output is a terminal, which it draws
    "docs/terminal.py": {"subprocess.Popen"},
}
# Test modules of unit/ beside those of a module, with the reason.
TOPICS = {
    "tests/unit/admin/test_page.py": "bridge/admin/page.html, in a browser",
    # what both HTTP engines promise, on each of them; what one does alone is in the tests of its module
    "tests/unit/upstream/test_connecting.py": "both engines: connections",
    "tests/unit/upstream/test_kept_connections.py": "both engines: connections that are kept for another call",
    "tests/unit/upstream/test_leaving.py": "both engines: calls that are cancelled, and early answers",
    "tests/unit/upstream/test_odd_answers.py": "both engines: a table of odd answers",
    "tests/unit/upstream/test_sending.py": "both engines: the bytes of a request",
    "tests/unit/upstream/test_stray_answers.py": "both engines: the soak of lab/torture/answers.py, by a fixed seed",
}
# What gives or replaces an attribute by its name as text.
REPLACERS = ("setattr", "delattr", "getattr", "patch", "object")
# The kit's readings of the standards, which judge the bridge and share no code with it.
SECOND_READINGS = ("documents", "http1", "http2", "oracle", "status_table", "statuses", "web")
LAB_MAY_IMPORT = ("tests.kit", "tests.vectors")
# What a suite uses of another, or of lab/, with the reason.
SHARED = {
    # the clients of clients/ as programs: of each kit, what tests/clients expects of the Python one
    "tests/interop/clients/programs.py": {"tests.clients"},
    "tests/interop/clients/test_kits.py": {"tests.clients"},
    # it writes a table of docs/reliability.md
    "tests/interop/grpc/__main__.py": {"lab"},
    # the soak of lab/torture/answers.py, at the engines alone
    "tests/unit/upstream/test_stray_answers.py": {"lab"},
}


def read_sources(folder: str) -> dict[str, ast.Module]:
    """Return the source of each module in this folder, by its path."""
    paths = sorted((ROOT / folder).rglob("*.py"))
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def has_code(source: ast.Module) -> bool:
    """Whether a module does more than to describe itself and to import names for others."""
    return any(not isinstance(node, ast.Import | ast.ImportFrom) and not is_declaration(node) for node in source.body)


def is_declaration(node: ast.stmt) -> bool:
    """Whether a statement is a docstring or `__all__`."""
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)] == ["__all__"]
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def get_test_module(path: str, source: ast.Module) -> str | None:
    """Return the path of a module's tests; None if it needs none."""
    folder, name = Path(path).parent, Path(path).stem
    if name == "__main__" or (name == "__init__" and not has_code(source)):
        return None
    subject = folder.name if name == "__init__" else name
    return f"tests/unit/{folder.relative_to('bridge') / f'test_{subject}.py'}"


def has_tests(source: ast.Module) -> bool:
    """Whether a module has a test function, at its top or in a class."""
    functions = (node for node in ast.walk(source) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return any(function.name.startswith("test_") for function in functions)


def find_untested(bridge: dict[str, ast.Module], tests: dict[str, ast.Module]) -> set[str]:
    """Return the modules of bridge/ whose test module is missing, or has no test."""
    expected = {path: get_test_module(path, source) for path, source in bridge.items()}
    return {path for path, name in expected.items() if name and not (name in tests and has_tests(tests[name]))}


def find_without_module(bridge: dict[str, ast.Module], tests: dict[str, ast.Module]) -> set[str]:
    """Return the test modules of unit/ that are not those of a module."""
    expected = {get_test_module(path, source) for path, source in bridge.items()}
    found = {path for path in tests if path.startswith("tests/unit/") and Path(path).name.startswith("test_")}
    return found - expected


def list_imports(source: ast.Module) -> Iterator[str]:
    """Yield the full names that a source imports, in functions too."""
    for node in ast.walk(source):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def find_test_imports(source: ast.Module) -> set[str]:
    """Return the test modules that a source imports."""
    return {
        name
        for name in list_imports(source)
        if any(part.startswith("test_") for part in name.split(".")) and "tests" in name
    }


def find_other_suites(path: str, source: ast.Module) -> set[str]:
    """Return the other suites whose helpers a source of tests/ imports; the kit and the vectors are everybody's."""
    own = Path(path).parts[1]
    names = [name.split(".") for name in list_imports(source)]
    suites = {name[1] for name in names if name[0] == "tests" and len(name) > 2} - {own, "kit", "vectors"}
    labs = {"lab"} if own != "lab" and any(name[0] == "lab" for name in names) else set()
    return {f"tests.{suite}" for suite in suites} | labs


def find_starters(source: ast.Module) -> set[str]:
    """Return the calls that start a process or open a server; an imported name counts like the whole one."""
    imported = {name.rpartition(".")[2]: name for name in list_imports(source)}
    found = set()
    for node in ast.walk(source):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            full = imported.get(name, name)
            if not full.startswith("tests.kit.") and any(f".{full}".endswith(f".{each}") for each in STARTERS):
                found.add(full)
    return found


def find_private_names(source: ast.Module) -> set[str]:
    """Return the private names of the product that a source imports, or replaces by their name as text.

    ruff's SLF001 finds those that are used as attributes.
    """
    imported = {name for name in list_imports(source) if name.startswith("bridge.")}
    replaced = {
        argument.value
        for node in ast.walk(source)
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in {*REPLACERS}
        for argument in node.args
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
    }
    return {name for name in imported | replaced if is_private(name)}


def find_named_modules(page: str) -> set[str]:
    """Return the modules and folders in the first column of the kit's table."""
    section = page.partition("\n## The kit\n")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def find_proc_paths(source: ast.Module) -> set[str]:
    """Return the texts of a source that are paths of /proc, whole or at the beginning of an f-string."""
    texts = {node.value for node in ast.walk(source) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return {text for text in texts if text.startswith("/proc")}


def is_private(name: str) -> bool:
    """Whether a part of a dotted name is private; `__version__` and its like are not."""
    return any(part.startswith("_") and not part.endswith("__") for part in name.split("."))


@pytest.fixture(scope="module")
def sources() -> dict[str, dict[str, ast.Module]]:
    """The modules by folder, without those of the kit."""
    found = {folder: read_sources(folder) for folder in ("bridge", "tests", "lab", "docs")}
    found["tests"] = {path: source for path, source in found["tests"].items() if not path.startswith("tests/kit/")}
    return found


def test_every_module_has_its_tests(sources):
    assert find_untested(sources["bridge"], sources["tests"]) == set()


def test_every_test_module_has_its_module(sources):
    assert find_without_module(sources["bridge"], sources["tests"]) == set(TOPICS)


def test_no_test_module_is_a_library(sources):
    found = {path: find_test_imports(source) for path, source in (sources["tests"] | sources["lab"]).items()}
    assert {path: names for path, names in found.items() if names} == {}


def test_laboratory_uses_the_kit_and_the_vectors_alone(sources):
    found = {(path, name) for path, source in sources["lab"].items() for name in list_imports(source)}
    ours = {(path, name) for path, name in found if name.startswith("tests.")}
    assert {(path, name) for path, name in ours if not name.startswith(LAB_MAY_IMPORT)} == set()


def test_suite_uses_its_own_helpers_and_the_kit(sources):
    found = {path: find_other_suites(path, source) for path, source in sources["tests"].items()}
    assert {path: suites for path, suites in found.items() if suites} == SHARED


def test_only_the_kit_starts_processes_and_opens_servers(sources):
    everywhere = sources["tests"] | sources["lab"] | sources["docs"]
    found = {path: find_starters(source) for path, source in everywhere.items()}
    assert {path: names for path, names in found.items() if names} == OWN_STARTERS


def test_only_the_kit_reads_proc(sources):
    everywhere = sources["tests"] | sources["lab"]
    del everywhere["tests/test_layout.py"]
    found = {path: find_proc_paths(source) for path, source in everywhere.items()}
    assert {path: texts for path, texts in found.items() if texts} == {}


def test_private_names_of_the_product_are_left_alone(sources):
    everywhere = sources["tests"] | sources["lab"] | read_sources("tests/kit")
    del everywhere["tests/test_layout.py"]
    found = {path: find_private_names(source) for path, source in everywhere.items()}
    assert {path: names for path, names in found.items() if names} == {}


def test_second_readings_share_no_code_with_the_bridge():
    kit = read_sources("tests/kit")
    names = {(module, name) for module in SECOND_READINGS for name in list_imports(kit[f"tests/kit/{module}.py"])}
    assert {(module, name) for module, name in names if name.partition(".")[0] == "bridge"} == set()


def test_readme_names_each_module_of_the_kit():
    named = find_named_modules((ROOT / "tests/README.md").read_text(encoding="utf-8"))
    kit = ROOT / "tests/kit"
    modules = {path.name for path in kit.glob("*.py")}
    folders = {f"{path.parent.name}/" for path in kit.glob("*/*.py")}
    assert named == modules | folders


# These rules can fail

STARTING = {
    "asyncio": "async def f():\n    await asyncio.create_subprocess_exec('true')",
    "a name of asyncio": "from asyncio import create_subprocess_exec\ncreate_subprocess_exec('true')",
    "subprocess": "import subprocess\nsubprocess.run(['true'])",
    "a name of subprocess": "from subprocess import run\nrun(['true'])",
    "Popen": "with subprocess.Popen(['true']): ...",
    "a raw server": "asyncio.start_server(f, '127.0.0.1', 0)",
    "a server of the loop": "loop.create_server(f, '127.0.0.1', 0)",
}
CALM = {
    "the kit's": "from tests.kit.upstreams import start_server\nstart_server(f)",
    "the kit's program": "from tests.kit.processes import run_program\nrun_program('true')",
    "another run": "asyncio.run(main())",
    "an attribute": "print(subprocess.run)",
}


@pytest.mark.parametrize(
    "source",
    ["from tests.e2e.test_errors import ROWS", "from tests.e2e import test_errors", "import tests.unit.test_reload"],
)
def test_import_of_a_test_module_is_found(source):
    assert find_test_imports(ast.parse(source))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from tests.unit.server.helpers import make", {"tests.unit"}),
        ("def test_it():\n    import lab.report", {"lab"}),
        ("from tests.e2e.helpers import make\nfrom tests.kit.http2 import PING\nfrom tests.kit import web", set()),
    ],
)
def test_helper_of_another_suite_is_found(source, expected):
    assert find_other_suites("tests/e2e/test_it.py", ast.parse(source)) == expected


def test_modules_in_the_table_of_the_kit_are_found():
    table = "| module | what for |\n|---|---|\n| `a.py`, `b/` | `c.py` |\n"
    page = f"# The house\n\n| `d.py` | x |\n\n## The kit\n\n{table}\n## Rules\n\n| `e.py` | x |\n"
    assert find_named_modules(page) == {"a.py", "b/"}


PRIVATE = {
    "import": "from bridge.server.asgi_rpc import _LAST_WRITE_S",
    "module": "import bridge._things",
    "monkeypatch by a path": "monkeypatch.setattr('bridge.server.asgi_rpc._LAST_WRITE_S', 0.05)",
    "monkeypatch of an object": "monkeypatch.setattr(processes, '_read', None)",
    "getattr": "getattr(collector, '_pids')",
    "mock": "mock.patch('bridge.telemetry.processes._read')",
    "mock of an object": "mock.patch.object(processes, '_read')",
}
PUBLIC = {
    "version": "from bridge import __version__",
    "another's": "from tensorzero.tensorzero import _start_http_gateway",
    "public": "monkeypatch.setattr(metrics, 'page', None)",
    "an argument": "LoadStream(load, receiving, sleep=sleep)",
}


READING_PROC = {
    "a path": "Path('/proc/self/fd')",
    "an f-string": "Path(f'/proc/{pid}/statm')",
    "open": "with open('/proc/cpuinfo') as file: ...",
    "the folder": "PROC = '/proc'",
}
READING_OTHERS = {
    "the kit's": "read_resident_bytes(pid)",
    "a reason": "pytest.skip('the benchmarks read /proc')",
    "a module": "'bridge/process/ports.py'",
}

RULES = {
    "starter": (find_starters, STARTING, CALM),
    "private name": (find_private_names, PRIVATE, PUBLIC),
    "path of /proc": (find_proc_paths, READING_PROC, READING_OTHERS),
}
FOUND = {f"{rule}, {name}": (find, bad[name]) for rule, (find, bad, _) in RULES.items() for name in bad}
ACCEPTED = {f"{rule}, {name}": (find, good[name]) for rule, (find, _, good) in RULES.items() for name in good}


@pytest.mark.parametrize(("find", "source"), FOUND.values(), ids=FOUND)
def test_source_against_a_rule_is_found(find, source):
    assert find(ast.parse(source))


@pytest.mark.parametrize(("find", "source"), ACCEPTED.values(), ids=ACCEPTED)
def test_other_source_is_accepted(find, source):
    assert find(ast.parse(source)) == set()


MODULE, ITS_TESTS = "bridge/core/nothing.py", "tests/unit/core/test_nothing.py"


@pytest.mark.parametrize(
    ("tests", "is_tested"),
    [
        ({}, False),
        ({ITS_TESTS: ""}, False),
        ({ITS_TESTS: "def check():\n    assert True"}, False),
        ({"tests/unit/test_nothing.py": "def test_it(): ..."}, False),
        ({ITS_TESTS: "def test_it(): ..."}, True),
        ({ITS_TESTS: "async def test_it(): ..."}, True),
        ({ITS_TESTS: "class TestIt:\n    def test_it(self): ..."}, True),
    ],
    ids=["no file", "an empty file", "no test in it", "another folder", "a test", "a coroutine", "a class"],
)
def test_module_without_tests_is_found(tests, is_tested):
    parsed = {path: ast.parse(source) for path, source in tests.items()}
    assert find_untested({MODULE: ast.parse("")}, parsed) == (set() if is_tested else {MODULE})


def test_test_module_without_a_module_is_found():
    tests = {path: ast.parse("") for path in (ITS_TESTS, "tests/unit/core/helper.py", "tests/e2e/test_all.py")}
    assert find_without_module({MODULE: ast.parse("")}, tests) == set()
    assert find_without_module({}, tests) == {ITS_TESTS}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('"""The door."""\nfrom bridge.core.chat import encode\n__all__ = ["encode"]', None),
        ('"""Code."""\nVERSION = "1"', "tests/unit/core/test_core.py"),
    ],
)
def test_package_needs_tests_if_it_has_code(source, expected):
    assert get_test_module("bridge/core/__init__.py", ast.parse(source)) == expected
