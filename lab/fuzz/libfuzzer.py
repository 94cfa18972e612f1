"""Run libFuzzer on a target for a time, in .venv-fuzz, and judge its output; or minimize a target's saved corpus.

Each run starts from the saved corpus and the inputs built from tests/vectors. New inputs go to dist/fuzz/TARGET/found,
an input that breaks a property to dist/fuzz/TARGET. `instrument.py` is what runs there.
"""

import asyncio
import hashlib
import importlib
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from lab.environment import ROOT
from lab.fuzz.targets import load_inputs, save_inputs
from lab.report import Figure, Result
from tests.kit.processes import build_source_environment, run_joined, run_program

__all__ = ["find_obstacle", "fuzz_target", "minimize"]

PYTHON = ROOT / ".venv-fuzz/bin/python"
FOUND = ROOT / "dist/fuzz"

INPUT_BYTES_MAX = 8192
SAVED_BYTES_MAX = 2048
"""Of a saved input: longer ones cover no more of the code, only parts of it more often."""
INPUT_S_MAX = 10
MEMORY_MIB_MAX = 2048
LATE_S_MAX = 120.0
"""How long a fuzzer may take beyond its time: it reads its corpus first, with coverage."""
MERGE_S_MAX = 600.0


def find_obstacle() -> tuple[str, bool]:
    """Return why atheris can't run, or "", and whether that is acceptable: it lacks wheels for some platforms."""
    if not PYTHON.exists():
        return f"not run: {PYTHON.parent.parent.name} is missing; `make lab PART=fuzz` creates it", False
    if run_program(PYTHON, "-c", "import atheris").code:
        return "not run: atheris has no wheel for this platform and Python", True
    return "", True


async def fuzz_target(name: str, seconds: int, seed: int, cores: asyncio.Semaphore) -> Result:
    """Run libFuzzer for a time."""
    options = {
        "max_total_time": seconds,
        "seed": seed,
        "max_len": INPUT_BYTES_MAX,
        "timeout": INPUT_S_MAX,
        "rss_limit_mb": MEMORY_MIB_MAX,
        "artifact_prefix": f"{FOUND / name}/",
    }
    async with cores:
        return judge(name, *await run_libfuzzer(name, options, fill_folders(name), seconds + LATE_S_MAX))


def fill_folders(name: str) -> list[Path]:
    """Fill the folders of a target's inputs, and return them; libFuzzer adds new inputs to the first."""
    found, seeds = FOUND / name / "found", FOUND / name / "seeds"
    found.mkdir(parents=True, exist_ok=True)
    seeds.mkdir(exist_ok=True)
    for data in (*load_inputs(name), *importlib.import_module(f"lab.fuzz.{name}").seeds()):
        (seeds / hashlib.sha1(data).hexdigest()).write_bytes(data)
    return [found, seeds]


async def run_libfuzzer(
    name: str, options: dict[str, int | str], inputs: Iterable[Path], limit_s: float
) -> tuple[int, str]:
    """Run it, and return its exit code and output. Raises TimeoutError."""
    flags = (f"-{key}={value}" for key, value in options.items())
    command = (PYTHON, "-m", "lab.fuzz.instrument", name, *flags, *inputs)
    return await run_joined(*command, timeout_s=limit_s, environment=build_source_environment())


def judge(name: str, code: int, output: str) -> Result:
    runs = max((int(count) for count in re.findall(r"^(?:#|Done )(\d+)", output, re.MULTILINE)), default=0)
    covered = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", output)
    broken = re.search(r"=== Uncaught Python exception: ===\n(.*)", output)
    written = re.search(r"Test unit written to (\S+)", output)
    figures: dict[str, Figure] = {}
    if covered:
        figures |= dict(zip(("edges covered", "features", "inputs"), map(float, covered[-1]), strict=True))
    if code == 0 and runs:
        return Result(name, runs, "every property holds", ok=True, figures=figures)
    what = broken[1] if broken else output.strip().rpartition("\n")[2][:200]
    note = written[1] if written else ""
    return Result(name, runs, f"broken: {what}", ok=False, figures=figures, note=note)


async def minimize(name: str) -> str:
    """Replace a target's saved corpus by the least inputs that cover as much, and return a line on their number."""
    least = FOUND / name / "least"
    shutil.rmtree(least, ignore_errors=True)
    least.mkdir(parents=True)
    inputs = fill_folders(name)
    code, output = await run_libfuzzer(name, {"merge": 1, "max_len": SAVED_BYTES_MAX}, [least, *inputs], MERGE_S_MAX)
    if code != 0:
        raise RuntimeError(f"libFuzzer can't merge {name}: exit code {code}: {output[-500:]}")
    save_inputs(name, (path.read_bytes() for path in least.iterdir()))
    return f"{name}: {len(load_inputs(name))} saved of {sum(len(list(folder.iterdir())) for folder in inputs)}"
