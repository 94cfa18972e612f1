"""The command of clients/README.md that generates code from the descriptor set, which has all that it needs."""

import itertools
import re
import shlex
import sys
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from tests.kit.processes import run_program

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "clients" / "README.md"


def expand(word: str) -> list[str]:
    """Return what a shell makes of a word with braces."""
    parts = re.split(r"\{([^}]*)\}", word)
    choices = [part.split(",") if number % 2 else [part] for number, part in enumerate(parts)]
    return ["".join(each) for each in itertools.product(*choices)]


def read_command() -> tuple[Path, list[str]]:
    """Return the descriptor set and the protos that the page's first command names."""
    block = re.search(r"^```sh\n(protoc .*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert block is not None
    _, descriptors, _, *protos = shlex.split(block[1].replace("\\\n", " "))
    return ROOT / descriptors.removeprefix("--descriptor_set_in="), [each for word in protos for each in expand(word)]


def test_command_names_every_proto_of_ours_and_the_details():
    path, protos = read_command()
    names = {file.name for file in FileDescriptorSet.FromString(path.read_bytes()).file}
    assert {*protos} == {name for name in names if not name.startswith("google/protobuf/")}


def test_command_generates_code_from_the_descriptor_set_alone(tmp_path):
    path, protos = read_command()
    command = (sys.executable, "-m", "grpc_tools.protoc", f"--descriptor_set_in={path}", f"--python_out={tmp_path}")
    code, _, err = run_program(*command, *protos, cwd=tmp_path)
    assert (code, err) == (0, "")
    made = {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*.py")}
    assert made == {proto.replace(".proto", "_pb2.py") for proto in protos}
