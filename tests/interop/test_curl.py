"""The commands of the documents for curl, grpcurl and `buf curl`, run unchanged, and the reflection that they use.

Only the address and the names of certificates are replaced. A command with a schema of its own is run against a bridge
without reflection.
"""

import contextlib
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest
import trustme
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from bridge.emulator import Emulator
from bridge.server.server import open_server
from bridge.settings import Settings
from tests.kit.bridges import SERVER_ENGINE
from tests.kit.processes import clean_environment, run_program_async
from tests.kit.web import SERVICE

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("README.md", "docs/operations.md")
DESCRIPTORS = ROOT / "generated" / "ollmbridge" / "v1" / "ollmbridge.binpb"
TOOLS = ("grpcurl", "buf curl", "curl")
REFLECTING = TOOLS[:2]
PATH = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
KEY = "sk-ollm-a-b"


def find_commands():
    """Yield each command of the documents' shell examples that is for one of the tools, on one line."""
    for document in DOCUMENTS:
        page = (ROOT / document).read_text(encoding="utf-8")
        for block in re.findall(r"^```sh\n(.*?)^```$", page, re.DOTALL | re.MULTILINE):
            for line in re.sub(r"\\\n *", "", block).splitlines():
                if line.startswith(TOOLS):
                    yield document, line


COMMANDS = list(find_commands())

# The expected output of a command, by a text in it: the first row that matches. Only the first one must fail.
EXPECTED = {
    "no_such_model": ["Code: NotFound", '"reason":"UPSTREAM_NOT_FOUND"', "rpc.ResourceInfo", '"httpStatus":404'],
    " list": ["grpc.health.v1.Health", "ollmbridge.v1.ChatCompletionService"],
    "--list-methods": ["ollmbridge.v1.ChatCompletionService/StreamChatCompletion"],
    "describe ollmbridge.v1.OllmOptions": ["// Tags for the spend logs.", "map<string, string> tags = 1;"],
    "describe ollmbridge.v1.CreateChatCompletionRequest": ["repeated .ollmbridge.v1.ChatMessage messages = 2;"],
    "Health/Check": ['"status": "SERVING"'],
    "curl -H": ['"text": "You said: Hello"', '"finishReason": "stop"'],
    "CreateChatCompletion": ['"text": "You said: Hello"', '"finishReason": "stop"'],
    "StreamChatCompletion": ['"content": "You"', '"content": " Hello"', '"finishReason": "stop"'],
}


class Place(NamedTuple):
    """A bridge's address and gateway, and its certificates if it has any."""

    address: str
    web_address: str
    emulator: Emulator
    files: dict[str, str]


@contextlib.asynccontextmanager
async def run_bridge(folder, *, tls=False, api_key=None, reflection=True):
    files, settings = {}, {"reflection": reflection}
    if tls:
        authority = trustme.CA()
        server, client = authority.issue_cert("localhost"), authority.issue_cert("client.example")
        authority.cert_pem.write_to_path(folder / "ca.crt")
        for name, certificate in (("server", server), ("client", client)):
            certificate.cert_chain_pems[0].write_to_path(folder / f"{name}.crt")
            certificate.private_key_pem.write_to_path(folder / f"{name}.key")
            (folder / f"{name}.key").chmod(0o600)
        files = {path.name: str(path) for path in folder.iterdir()}
        settings["tls"] = {
            "cert_file": files["server.crt"],
            "key_file": files["server.key"],
            "client_ca_file": files["ca.crt"],
        }
    async with Emulator(api_key=api_key) as emulator:
        ports = {"listen": "127.0.0.1:0", "web_listen": "127.0.0.1:0", "server": {"engine": SERVER_ENGINE}}
        settings = Settings(**ports, drain_grace_s=0, upstream={"base_url": emulator.url}, **settings)
        async with open_server(settings) as server:
            yield Place(server.address, server.web_address, emulator, files)


async def run(command, place):
    port = place.address.rpartition(":")[2]
    command = command.replace("127.0.0.1:50051", place.address).replace("bridge.example:50051", f"localhost:{port}")
    command = command.replace("127.0.0.1:8081", place.web_address)
    for name, path in place.files.items():
        command = re.sub(rf"(?<= ){re.escape(name)}(?= )", path, command)
    environment = clean_environment() | {"PATH": PATH, "OLLM_API_KEY": KEY}
    code, out, err = await run_program_async("sh", "-c", command, cwd=ROOT, environment=environment)
    return code, out + err


def has_schema(command):
    return any(option in command for option in ("-protoset", "--schema"))


def skip_without(tool):
    if shutil.which(tool, path=PATH) is None:
        pytest.skip(f"{tool} is not on this machine (`make interop WHAT=curl` fetches grpcurl, for Linux on x86-64)")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_have_commands_for_all_tools(document):
    found = [command for name, command in COMMANDS if name == document]
    assert all(any(command.startswith(tool) for command in found) for tool in TOOLS)


@pytest.mark.parametrize("command", [command for _, command in COMMANDS], ids=[name for name, _ in COMMANDS])
async def test_command_of_a_document_prints_the_documented_output(command, tmp_path):
    skip_without(command.split()[0])
    key = next(words for words in EXPECTED if words in command)
    has_key = "$OLLM_API_KEY" in command
    async with run_bridge(
        tmp_path, tls="ca.crt" in command, api_key=KEY if has_key else None, reflection=not has_schema(command)
    ) as place:
        code, out = await run(command, place)
        assert [words for words in EXPECTED[key] if words not in out] == [], out
        assert (code != 0) == (key == "no_such_model"), out
        if has_key:
            assert place.emulator.exchanges[-1].tags == {"team": "search"}


@pytest.mark.parametrize("tool", REFLECTING)
async def test_command_without_a_schema_fails_without_reflection(tool, tmp_path):
    """So the commands with a schema show that the schema is enough."""
    skip_without(tool.split()[0])
    command = next(command for _, command in COMMANDS if command.startswith(tool) and not has_schema(command))
    async with run_bridge(tmp_path, reflection=False) as place:
        code, out = await run(command, place)
        assert code != 0, out
        assert place.emulator.exchanges == []


PROTOCOLS = ("connect", "grpc", "grpcweb")


@pytest.mark.parametrize("method", ["CreateChatCompletion", "StreamChatCompletion"])
@pytest.mark.parametrize("model", ["near_qwen3_30b", "scenario::rate_limited?retry_after=2"], ids=["ok", "failure"])
async def test_all_protocols_of_buf_curl_print_the_same(method, model, tmp_path):
    skip_without("buf")
    request = json.dumps({"model": model, "messages": [{"role": "user", "text": "Hello"}]})
    printed = {}
    async with run_bridge(tmp_path) as place:
        for protocol in PROTOCOLS:
            address = place.address if protocol == "grpc" else place.web_address
            command = f"buf curl --protocol {protocol} --schema generated/ollmbridge/v1/ollmbridge.binpb -d '{request}'"
            command += " -H 'x-request-id: r-1'"
            printed[protocol] = await run(f"{command} http://{address}/{SERVICE}/{method}", place)
    outcomes = {protocol: (code, strip_varying(out)) for protocol, (code, out) in printed.items()}
    assert outcomes["connect"] == outcomes["grpc"] == outcomes["grpcweb"]
    assert "You" in outcomes["grpc"][1] or '"code": "resource_exhausted"' in outcomes["grpc"][1]


def strip_varying(out):
    """Remove what differs from call to call, and the words of details, which Connect alone has."""
    without_words = re.sub(r',\s*"debug": {.*?\n {9}}', "", out, flags=re.DOTALL)
    return re.sub(r'"(id|created|episodeId)": "[^"]*"', "", without_words)


# Reflection and the descriptor set


async def test_reflection_returns_the_files_of_the_descriptor_set(tmp_path):
    """Error details are among them, so that a client can show them."""
    written = {file.name: file for file in FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()).file}
    assert {"ollmbridge/v1/chat_completion_service.proto", "google/rpc/error_details.proto"} <= written.keys()
    returned = {}
    async with run_bridge(tmp_path) as place, grpc.aio.insecure_channel(place.address) as channel:
        answers = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            reflection_pb2.ServerReflectionRequest(file_by_filename=name) for name in written
        )
        async for answer in answers:
            files = map(FileDescriptorProto.FromString, answer.file_descriptor_response.file_descriptor_proto)
            returned |= {file.name: strip(file) for file in files}
    assert returned == {name: strip(file) for name, file in written.items()}


def strip(file):
    """Remove what a server may omit: comments, and the names in JSON that follow from the others."""
    file.ClearField("source_code_info")
    messages = list(file.message_type)
    while messages:
        message = messages.pop()
        messages += message.nested_type
        for field in message.field:
            field.ClearField("json_name")
    return file


def test_descriptor_set_has_every_proto_of_the_contract_with_its_comments():
    written = {file.name: file for file in FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()).file}
    ours = {path.relative_to(ROOT / "protos").as_posix() for path in ROOT.glob("protos/**/*.proto")}
    assert {name for name in written if name.startswith("ollmbridge/")} == ours
    for name in ours:
        assert any(place.leading_comments for place in written[name].source_code_info.location)
    needed = {each for file in written.values() for each in file.dependency}
    assert needed <= written.keys()
