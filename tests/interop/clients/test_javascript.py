"""The program of clients/README.md that needs no generated code, with the packages of the TypeScript client."""

import re

import pytest

from tests.interop.clients import programs
from tests.interop.clients.place import start_place
from tests.kit.processes import ROOT, clean_environment, run_program

pytestmark = pytest.mark.timeout(programs.BUILD_S + programs.RUN_S)


def test_program_without_generated_code_prints_the_answer(tmp_path):
    if lacking := programs.find_missing("typescript"):
        pytest.skip(f"this machine has no {' and no '.join(lacking)}")
    programs.build("typescript")
    page = (programs.CLIENTS / "README.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```js\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "node_modules").symlink_to(programs.CLIENTS / "typescript" / "node_modules")
    with start_place(tmp_path) as place:
        program = tmp_path / "program.mjs"
        program.write_text(text.replace("127.0.0.1:50051", place.variables["BRIDGE_ADDRESS"]), encoding="utf-8")
        environment = clean_environment() | {"PATH": programs.PATH}
        code, out, err = run_program("node", program, cwd=ROOT, environment=environment, timeout_s=programs.RUN_S)
    assert (code, out) == (0, "You said: Hello"), err
