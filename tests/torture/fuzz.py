"""Arbitrary bytes: at the translation's own functions, found by atheris, and as raw HTTP/2 frames at a served port.

`python -m tests.torture.fuzz [--seconds N] [--seed N] [--minimize] [TARGET…]`, or `make fuzz`. Each target starts from
the saved corpus and the inputs built from tests/vectors; its new inputs go to dist/fuzz/TARGET/found, an input that
breaks a property to dist/fuzz/TARGET. Targets run side by side, one a core. `--minimize` replaces the saved corpus by
the least inputs, of all that there are, that cover as much as all of them.
"""

import argparse
import asyncio
import contextlib
import hashlib
import importlib
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random

import grpc

from bridge.emulator import Emulator
from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionRequest
from ollmbridge.v1.chat_completion_service_pb2_grpc import ChatCompletionServiceStub
from tests.fuzz import http2
from tests.fuzz.targets import TARGETS, load_inputs, save_inputs
from tests.torture.report import Finding, Options, format_lines
from tests.torture.subject import Process, run_bridge

__all__ = ["run"]

FULL_S, QUICK_S = 600, 20
ROOT = Path(__file__).parent.parent.parent
PYTHON = ROOT / ".venv-fuzz/bin/python"
FOUND = ROOT / "dist/fuzz"
FRAMES = "frames"
ALL = (*TARGETS, FRAMES)

INPUT_BYTES_MAX = 8192
SAVED_BYTES_MAX = 2048
"""Of a saved input: longer ones cover no more of the code, only parts of it more often."""
INPUT_S_MAX = 10
MEMORY_MIB_MAX = 2048
LATE_S_MAX = 120.0
"""How long a fuzzer may take beyond its time: it reads its corpus first, with coverage."""
MERGE_S_MAX = 600.0

BATCH = 64
"""Concurrent conversations."""
READ_S_MAX = 0.3
GOOD_S_MAX = 3.0
MEMORY_MORE_MIB_MAX = 16.0
DESCRIPTORS_MORE_MAX = 8
SETTLE_S = 45.0
"""The bridge closes upstream connections that were unused for 15 s."""


async def run(options: Options) -> list[Finding]:
    """Fuzz each target and the port for 10 minutes, or for 20 seconds in a quick run."""
    return await fuzz_all(ALL, QUICK_S if options.quick else FULL_S, options.seed)


async def fuzz_all(names: Sequence[str], seconds: int, seed: int) -> list[Finding]:
    why, ok = find_obstacle()
    if why:
        findings = [Finding("fuzz", name, 0, why, ok, {}) for name in names if name != FRAMES]
    else:
        cores = asyncio.Semaphore(len(os.sched_getaffinity(0)))
        findings = await asyncio.gather(*(fuzz_target(name, seconds, seed, cores) for name in names if name != FRAMES))
    return [*findings, *([await fuzz_port(seconds, seed)] if FRAMES in names else [])]


def find_obstacle() -> tuple[str, bool]:
    """Return why atheris can't run, or "", and whether that is acceptable: it lacks wheels for some platforms."""
    if not PYTHON.exists():
        return f"not run: {PYTHON.parent.parent.name} is missing; `make fuzz` creates it", False
    if subprocess.run([str(PYTHON), "-c", "import atheris"], capture_output=True, check=False).returncode:
        return "not run: atheris has no wheel for this platform and Python", True
    return "", True


# The translation's functions


async def fuzz_target(name: str, seconds: int, seed: int, cores: asyncio.Semaphore) -> Finding:
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
    for data in (*load_inputs(name), *importlib.import_module(f"tests.fuzz.{name}").seeds()):
        (seeds / hashlib.sha1(data).hexdigest()).write_bytes(data)
    return [found, seeds]


async def run_libfuzzer(
    name: str, options: dict[str, int | str], inputs: Iterable[Path], limit_s: float
) -> tuple[str, int | None]:
    """Run it, and return its output and exit code. Raises TimeoutError."""
    process = await asyncio.create_subprocess_exec(
        *(str(PYTHON), "-m", "tests.fuzz", name, *(f"-{key}={value}" for key, value in options.items())),
        *map(str, inputs),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'generated'}"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(limit_s):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return output.decode("utf-8", "replace"), process.returncode


def judge(name: str, output: str, code: int | None) -> Finding:
    runs = max((int(count) for count in re.findall(r"^(?:#|Done )(\d+)", output, re.MULTILINE)), default=0)
    covered = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", output)
    broken = re.search(r"=== Uncaught Python exception: ===\n(.*)", output)
    written = re.search(r"Test unit written to (\S+)", output)
    figures: dict[str, float | str] = {}
    if covered:
        figures |= dict(zip(("edges covered", "features", "inputs"), map(float, covered[-1]), strict=True))
    if code == 0 and runs:
        return Finding("fuzz", name, runs, "every property holds", ok=True, figures=figures)
    what = broken[1] if broken else output.strip().rpartition("\n")[2][:200]
    note = written[1] if written else ""
    return Finding("fuzz", name, runs, f"broken: {what}", ok=False, figures=figures, note=note)


async def minimize(name: str) -> str:
    """Replace a target's saved corpus by the least inputs that cover as much, and return a line on their number."""
    least = FOUND / name / "least"
    shutil.rmtree(least, ignore_errors=True)
    least.mkdir(parents=True)
    inputs = fill_folders(name)
    output, code = await run_libfuzzer(name, {"merge": 1, "max_len": SAVED_BYTES_MAX}, [least, *inputs], MERGE_S_MAX)
    if code != 0:
        raise RuntimeError(f"libFuzzer can't merge {name}: exit code {code}: {output[-500:]}")
    save_inputs(name, (path.read_bytes() for path in least.iterdir()))
    return f"{name}: {len(load_inputs(name))} saved of {sum(len(list(folder.iterdir())) for folder in inputs)}"


# The port


async def fuzz_port(seconds: float, seed: int) -> Finding:
    """Send a bridge what it should not get, and check after each batch that it serves as before."""
    with tempfile.TemporaryDirectory() as name:
        async with (
            Emulator() as emulator,
            run_bridge(f"127.0.0.1:{emulator.port}", folder=Path(name)) as subject,
            grpc.aio.insecure_channel(subject.address) as channel,
        ):
            return await attack(subject, ChatCompletionServiceStub(channel), seconds, seed)


async def attack(subject: Process, stub: ChatCompletionServiceStub, seconds: float, seed: int) -> Finding:
    await time_good_call(stub)
    descriptors = subject.descriptors
    good_s: list[float] = []
    memory_mib: list[float] = []
    count, wrong = 0, ""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not wrong:
        conversations = [http2.build_conversation(Random(f"{seed}:{number}")) for number in range(count, count + BATCH)]
        await asyncio.gather(*(send(subject.address, each) for each in conversations))
        count += BATCH
        try:
            good_s.append(await time_good_call(stub))
        except (grpc.aio.AioRpcError, AssertionError) as error:
            wrong = f"a good call failed after conversations {count - BATCH} to {count - 1}: {error!r}"
        if not subject.is_alive:
            wrong = f"the process ended after conversations {count - BATCH} to {count - 1}"
        else:
            memory_mib.append(subject.memory_mib)
    remaining = await wait_until_settled(subject, descriptors) if subject.is_alive else -1
    fifth = max(len(memory_mib) // 5, 1)
    early, late = statistics.median(memory_mib[fifth : 2 * fifth] or memory_mib), statistics.median(memory_mib[-fifth:])
    if not wrong and late - early > MEMORY_MORE_MIB_MAX:
        wrong = f"memory grew by {late - early:.1f} MiB"
    if not wrong and remaining > descriptors + DESCRIPTORS_MORE_MAX:
        wrong = f"{remaining} descriptors stayed open, {descriptors} before"
    if not wrong and any(mark in subject.log_text for mark in (' File "', "BRIDGE_FAULT")):
        wrong = "a fault of the bridge in its log"
    return Finding(
        "fuzz",
        "raw HTTP/2 frames at the port",
        count,
        wrong or "alive, and every good call in time",
        ok=not wrong,
        figures={
            "good calls between": len(good_s),
            "slowest of them, ms": max(good_s, default=0.0) * 1000,
            "memory in the second fifth, MiB": early,
            "memory in the last fifth, MiB": late,
            "descriptors before": descriptors,
            "descriptors after": remaining,
        },
        note=f"after each {BATCH} conversations a good call within {GOOD_S_MAX:g} s; "
        f"memory grows by at most {MEMORY_MORE_MIB_MAX:g} MiB",
    )


async def send(address: str, data: bytes) -> None:
    """Send it, read for a moment, and abort the connection."""
    host, _, number = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(number))
    with contextlib.suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(READ_S_MAX):
            writer.write(data)
            while await reader.read(65_536):
                pass
    writer.transport.abort()


async def time_good_call(stub: ChatCompletionServiceStub) -> float:
    request = CreateChatCompletionRequest(model="echo")
    request.messages.add(role="user", text="still there?")
    started_at = time.monotonic()
    reply = await stub.CreateChatCompletion(request, timeout=GOOD_S_MAX)
    assert reply.choices[0].message.text == "You said: still there?"
    return time.monotonic() - started_at


async def wait_until_settled(subject: Process, descriptors: int) -> int:
    """Wait until descriptors are closed again, for as long as that may take, and return how many are open."""
    end = time.monotonic() + SETTLE_S
    while (remaining := subject.descriptors) > descriptors + DESCRIPTORS_MORE_MAX and time.monotonic() < end:  # noqa: ASYNC110
        await asyncio.sleep(0.5)
    return remaining


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(ALL)} (all)")
    parser.add_argument("--seconds", type=int, default=QUICK_S, help="how long each (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="not 0 (%(default)s)")
    parser.add_argument("--minimize", action="store_true", help="then minimize the saved corpus")
    arguments = parser.parse_args()
    names = arguments.targets or ALL
    if unknown := set(names) - set(ALL):
        parser.error(f"expected targets among {', '.join(ALL)}, found {', '.join(sorted(unknown))}")
    findings = asyncio.run(fuzz_all(names, arguments.seconds, arguments.seed))
    print(*format_lines(findings), sep="\n")
    if any(not each.ok for each in findings):
        return 1
    for name in names if arguments.minimize else ():
        if name != FRAMES:
            print(asyncio.run(minimize(name)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
