"""The Python programs in the READMEs of the callers' package and of its client run as they stand."""

import re
import sys
from pathlib import Path

import pytest

from tests.kit.processes import run_program_async

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", ["generated/README.md", "clients/python/README.md"])
async def test_program_prints_the_answer(page, bridge, tmp_path):
    (program,) = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    assert "127.0.0.1:50051" in program
    kit = f"import sys\nsys.path[:0] = [{str(ROOT / 'clients' / 'python')!r}]\n"
    (tmp_path / "program.py").write_text(kit + program.replace("127.0.0.1:50051", bridge.address), encoding="utf-8")
    code, out, err = await run_program_async(sys.executable, tmp_path / "program.py")
    assert (code, out.strip(), err) == (0, "You said: Hello", "")
