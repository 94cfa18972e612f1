"""docs/from-openai-sdk.md: its two programs do the same, and the port is no longer than its original."""

import io
import re
import sys
import tokenize
from pathlib import Path

import pytest

from tests.kit.processes import run_program_async

PAGE = (Path(__file__).parents[2] / "docs" / "from-openai-sdk.md").read_text(encoding="utf-8")
ORIGINAL, PORT, ASYNC = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
KIT = Path(__file__).parents[2] / "clients" / "python"


def count_lines(program: str) -> tuple[int, int]:
    """Return the number of statements, whose layout is of no account, and of lines that are not blank."""
    tokens = tokenize.generate_tokens(io.StringIO(program).readline)
    statements = sum(token.type == tokenize.NEWLINE for token in tokens)
    return statements, sum(1 for line in program.splitlines() if line.strip())


def test_port_is_no_longer_than_its_original():
    (statements, lines), (statements_max, lines_max) = count_lines(PORT), count_lines(ORIGINAL)
    assert statements <= statements_max
    assert lines <= lines_max
    assert max(map(len, PORT.splitlines())) <= max(map(len, ORIGINAL.splitlines()))


async def run(program: str, folder: Path, addresses: dict[str, str]) -> str:
    for known, own in addresses.items():
        assert known in program
        program = program.replace(known, own)
    (folder / "program.py").write_text(f"import sys\nsys.path[:0] = [{str(KIT)!r}]\n{program}", encoding="utf-8")
    code, out, err = await run_program_async(sys.executable, folder / "program.py")
    assert (code, err) == (0, "")
    return out


QUESTIONS = {
    "tools": ("near_qwen3_30b", "The tool said: 21 degrees in Paris"),
    "failure": ("no_such_model", "Unknown model"),
}


async def run_port(bridge, model, folder):
    here = {"127.0.0.1:50051": bridge.address, "Bearer …": "Bearer k", "near_qwen3_30b": model}
    return await run(PORT, folder, here)


@pytest.mark.parametrize(("model", "expected"), QUESTIONS.values(), ids=QUESTIONS)
async def test_port_answers(model, expected, bridge, emulator, tmp_path):
    assert expected in await run_port(bridge, model, tmp_path)
    assert emulator.exchanges


@pytest.mark.parametrize(("model", "expected"), QUESTIONS.values(), ids=QUESTIONS)
async def test_port_sends_what_its_original_sends(model, expected, bridge, emulator, tmp_path):
    pytest.importorskip("openai", reason="openai is not installed: it is one of the benchmarks' packages")
    await run_port(bridge, model, tmp_path)
    ported = [exchange.json for exchange in emulator.exchanges]
    there = {"http://127.0.0.1:8080": emulator.url, 'api_key="…"': 'api_key="k"', "near_qwen3_30b": model}
    assert expected in await run(ORIGINAL, tmp_path, there)
    original = [exchange.json for exchange in emulator.exchanges][len(ported) :]
    assert [read_facts(body) for body in ported] == [read_facts(body) for body in original]


async def test_program_with_asyncio_prints_the_answer(bridge, tmp_path):
    assert await run(ASYNC, tmp_path, {"127.0.0.1:50051": bridge.address}) == "You said: Hello\n"


def read_facts(body):
    """Return what a request says, but for what the SDK adds to its messages, and the usage that the bridge asks for."""
    keys = ("role", "content", "tool_call_id")
    messages = [{key: message[key] for key in keys if message.get(key)} for message in body["messages"]]
    calls = [
        (call["id"], call["function"]["name"], call["function"]["arguments"])
        for message in body["messages"]
        for call in message.get("tool_calls") or ()
    ]
    return {key: item for key, item in body.items() if key not in {"messages", "stream_options"}}, messages, calls
