"""The two distributions as their users get them: built, and installed by pip with their requirements and no more.

Each gets a virtual environment of its own. The requirements of its wheel, and theirs, are linked there from the
environment of the tests, so no network is needed; pip itself then checks that nothing is missing.
"""

import asyncio
import sys
import tarfile
import tomllib
import venv
import zipfile
from email.parser import BytesHeaderParser
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from bridge import __version__
from ollmbridge.v1 import chat_completion_service_pb2_grpc, chat_pb2
from tests.kit.processes import run_program

ROOT = Path(__file__).parents[2]
SOURCES = {"ollm-bridge": ROOT, "ollm-bridge-protos": ROOT / "generated"}
MODULES = {
    path.relative_to(SOURCES["ollm-bridge-protos"]).as_posix() for path in ROOT.glob("generated/ollmbridge/v1/*.*")
}
KIT = {
    path.relative_to(ROOT / "clients" / "python").as_posix()
    for path in ROOT.glob("clients/python/ollmbridge_client/*")
    if path.is_file()
}


def run(*command, **options):
    code, out, err = run_program(*command, **options)
    assert code == 0, f"{command}\n{out}\n{err}"
    return out


def build(source, target, kind):
    """Build without isolation, with the backend of the tests' environment, which has the same pin."""
    run(sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(target), cwd=source)
    return next(target.glob("*.whl" if kind == "wheel" else "*.tar.gz"))


def list_contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name and ".data/" not in name}


def read_requirements(wheel):
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return BytesHeaderParser().parsebytes(archive.read(name)).get_all("Requires-Dist")


def resolve(requirements: list[str]) -> dict[str, Distribution]:
    """Return all distributions that these requirements need, by name, from the environment of the tests."""
    found: dict[str, Distribution] = {}
    done: set[tuple[str, str]] = set()
    waiting = [(Requirement(text), "") for text in requirements]
    while waiting:
        requirement, wanted = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": wanted}):
            continue
        name = canonicalize_name(requirement.name)
        found[name] = distribution(name)
        for extra in {"", *requirement.extras}:
            if (name, extra) not in done:
                done.add((name, extra))
                waiting += [(Requirement(text), extra) for text in found[name].requires or ()]
    return found


def link(distributions, site: Path) -> None:
    for each in distributions:
        for file in each.files:
            if file.parts[0] == ".." or file.suffix == ".pyc":
                continue
            (site / file).parent.mkdir(parents=True, exist_ok=True)
            (site / file).symlink_to(each.locate_file(file))


class Installed(NamedTuple):
    wheel: Path
    requirements: dict[str, Distribution]
    site: Path
    scripts: Path

    def python(self, *arguments):
        return run(str(self.scripts / "python"), "-I", *arguments)


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """Build both wheels, and install each in an environment with only Python and its requirements."""
    found = {}
    for name, source in SOURCES.items():
        place = tmp_path_factory.mktemp(name)
        wheel = build(source, place, "wheel")
        venv.create(place / "venv", with_pip=False)
        scripts = place / "venv" / "bin"
        site = Path(
            run(str(scripts / "python"), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
        )
        requirements = resolve(read_requirements(wheel))
        link(requirements.values(), site)
        pip = (sys.executable, "-m", "pip", "--python", str(scripts / "python"), "--disable-pip-version-check")
        run(*pip, "install", "--no-index", "--no-compile", str(wheel))
        found[name] = Installed(wheel, requirements, site, scripts)
    return found


@pytest.fixture
def server(packages):
    return packages["ollm-bridge"]


@pytest.fixture
def protos(packages):
    return packages["ollm-bridge-protos"]


# Contents


def test_server_has_every_module_of_the_bridge_and_every_generated_file(server):
    bridge = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("bridge/**/*.*") if path.suffix != ".pyc"}
    assert list_contents(server.wheel) == bridge | MODULES
    assert {"bridge/py.typed", "bridge/admin/page.html", "ollmbridge/v1/py.typed"} <= list_contents(server.wheel)
    manual = ROOT / "bridge" / "cli" / "shell" / "ollm-bridge.1"
    assert (server.scripts.parent / "share" / "man" / "man1" / manual.name).read_bytes() == manual.read_bytes()


def test_protos_have_the_generated_files_and_the_kit_and_nothing_else(protos):
    assert list_contents(protos.wheel) == MODULES | KIT
    assert {"ollmbridge/v1/py.typed", "ollmbridge/v1/chat_pb2.pyi", "ollmbridge/v1/ollmbridge.binpb"} <= MODULES
    assert {"ollmbridge_client/py.typed", "ollmbridge_client/kit.py"} <= KIT


@pytest.mark.timeout(300)  # it builds
@pytest.mark.parametrize("name", SOURCES)
def test_wheel_built_from_the_source_distribution_is_the_same(name, packages, tmp_path):
    with tarfile.open(build(SOURCES[name], tmp_path, "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = next(path for path in tmp_path.iterdir() if path.is_dir())
    with (
        zipfile.ZipFile(build(unpacked, tmp_path, "wheel")) as again,
        zipfile.ZipFile(packages[name].wheel) as wheel,
    ):
        assert {each: again.read(each) for each in again.namelist()} == {
            each: wheel.read(each) for each in wheel.namelist()
        }


def test_both_have_one_version_and_one_licence(packages):
    names = {f"{name.replace('-', '_')}-{__version__}-py3-none-any.whl" for name in SOURCES}
    assert {each.wheel.name for each in packages.values()} == names
    for each in packages.values():
        licence = next(each.site.glob("ollm_bridge*.dist-info/licenses/LICENSE"))
        assert licence.read_bytes() == (ROOT / "LICENSE").read_bytes()


@pytest.mark.parametrize("name", SOURCES)
def test_requirements_are_no_older_than_the_generated_modules_need(name):
    declared = tomllib.loads((SOURCES[name] / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    oldest = {each.name: min(spec.version for spec in each.specifier) for each in map(Requirement, declared)}
    needed = chat_completion_service_pb2_grpc.GRPC_GENERATED_VERSION
    header = Path(chat_pb2.__file__).read_text(encoding="utf-8").partition("Protobuf Python Version: ")[2]
    for package, version in (("grpcio", needed), ("protobuf", header.partition("\n")[0])):
        assert Version(oldest[package]) >= Version(version)
        if name == "ollm-bridge-protos":  # tests/interop/clients/test_pythons.py runs with these
            assert Version(oldest[package]) == Version(version)


# Use


def test_server_has_its_commands(server):
    out = run(str(server.scripts / "ollm-bridge"), "--help")
    assert all(name in out for name in ("serve", "chat", "check", "healthcheck", "emulate", "demo"))
    assert "--web-listen" in run(str(server.scripts / "ollm-bridge"), "completion", "bash")


async def test_server_runs_its_demo(server):
    out = await asyncio.to_thread(run, str(server.scripts / "ollm-bridge"), "demo")
    assert out.count("\n$ ollm-bridge chat ") == 4


def test_protos_need_no_other_packages(protos):
    assert protos.requirements.keys() == {
        *("googleapis-common-protos", "grpcio", "grpcio-status", "protobuf", "typing-extensions")
    }


CALLER = """
import importlib.util, sys
import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from ollmbridge.v1 import chat_completion_service_pb2 as pb, chat_completion_service_pb2_grpc as pb_grpc

assert importlib.util.find_spec("bridge") is None
assert not [name for name in ("aiohttp", "httpx", "httpx2", "pydantic") if importlib.util.find_spec(name)]
with grpc.insecure_channel(sys.argv[1]) as channel:
    stub = pb_grpc.ChatCompletionServiceStub(channel)
    request = pb.CreateChatCompletionRequest(model="near_qwen3_30b")
    request.messages.add(role="user", text="Hello")
    print("".join(choice.delta.content for chunk in stub.StreamChatCompletion(request) for choice in chunk.choices))
    request.model = "no_such_model"
    try:
        stub.CreateChatCompletion(request)
    except grpc.RpcError as error:
        info = error_details_pb2.ErrorInfo()
        assert rpc_status.from_call(error).details[0].Unpack(info)
        print(info.reason)
"""


KIT_CALLER = """
import sys
import grpc
from ollmbridge_client import ChatCompletionServiceStub, accumulate, connect, failure, from_openai, to_openai

stub = ChatCompletionServiceStub(connect(sys.argv[1]))
request = from_openai({"model": "near_qwen3_30b", "messages": [{"role": "user", "content": "Hello"}]})
reply = accumulate(stub.StreamChatCompletion(request))
print(to_openai(reply)["choices"][0]["message"]["content"])
request.model = "no_such_model"
try:
    stub.CreateChatCompletion(request)
except grpc.RpcError as error:
    print(failure(error).reason)
"""


async def test_kit_of_the_protos_makes_a_call_and_reads_an_error(protos, bridge):
    out = await asyncio.to_thread(protos.python, "-c", KIT_CALLER, bridge.address)
    assert out.splitlines() == ["You said: Hello", "UPSTREAM_NOT_FOUND"]


async def test_protos_alone_make_a_call_and_read_an_error(protos, bridge):
    out = await asyncio.to_thread(protos.python, "-c", CALLER, bridge.address)
    assert out.splitlines() == ["You said: Hello", "UPSTREAM_NOT_FOUND"]


MESSAGE_TYPES = """
from ollmbridge.v1 import chat_pb2
reveal_type(chat_pb2.ChatMessage(role="user", text="Hello").tool_calls[0].function.arguments)
chat_pb2.ChatMessage(role=1)
chat_pb2.ChatMessage().rolle
"""
MESSAGE_NOTES = [
    'note: Revealed type is "str"',
    'error: Argument "role" to "ChatMessage" has incompatible type "int"; expected "str"  [arg-type]',
    'error: "ChatMessage" has no attribute "rolle"; maybe "role"?  [attr-defined]',
]
PACKAGE = "ollmbridge.v1.chat_completion_service_pb2"
METHOD = f"grpc.UnaryStreamMultiCallable[{PACKAGE}.CreateChatCompletionRequest, {PACKAGE}.StreamChatCompletionResponse]"
STUB_TYPES = """
from ollmbridge.v1 import chat_completion_service_pb2_grpc as pb_grpc
reveal_type(pb_grpc.ChatCompletionServiceStub.StreamChatCompletion)
"""
# Both distributions have the same stubs, so the types of one are enough: mypy takes long for grpc's own.
OWN_TYPES = {
    "ollm-bridge": ("from bridge import __version__\nreveal_type(__version__)\n", 'note: Revealed type is "str"'),
    "ollm-bridge-protos": (
        STUB_TYPES,
        f'note: Revealed type is "{METHOD}"',
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_type_checker_finds_their_types(name, packages, tmp_path):
    installed = packages[name]
    link((distribution("types-grpcio"), distribution("types-protobuf")), installed.site)
    source, note = OWN_TYPES[name]
    (tmp_path / "caller.py").write_text(MESSAGE_TYPES + source, encoding="utf-8")
    mypy = (sys.executable, "-m", "mypy", "--strict", "--python-executable", str(installed.scripts / "python"))
    options = ("--config-file=", f"--cache-dir={tmp_path}", "--no-error-summary", "caller.py")
    lines = run_program(*mypy, *options, cwd=tmp_path, timeout_s=240).out.splitlines()
    assert [line.partition(": ")[2] for line in lines] == [*MESSAGE_NOTES, note]


def test_descriptor_set_is_a_resource_of_its_package(protos):
    code = "import importlib.resources as r; print(r.files('ollmbridge.v1') / 'ollmbridge.binpb')"
    found = Path(protos.python("-c", code).strip())
    assert found.read_bytes() == (SOURCES["ollm-bridge-protos"] / "ollmbridge/v1/ollmbridge.binpb").read_bytes()
