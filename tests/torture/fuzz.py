"""Any bytes at all: at the translation's own functions, found by atheris, and as raw HTTP/2 frames at a served port.

`python -m tests.torture.fuzz [--seconds N] [--seed N] [--keep] [TARGET…]`, or `make fuzz`. Each target begins from the
kept corpus and the inputs made from tests/vectors; what it finds goes to dist/fuzz/TARGET/found, an input that breaks
a property to dist/fuzz/TARGET. Targets run side by side, one a core. `--keep` makes the kept corpus anew: the least
inputs, of all that there are, that cover as much as all of them.
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
from tests.fuzz.targets import TARGETS, keep, kept
from tests.torture.report import Finding, Options, lines
from tests.torture.subject import Process, bridge

__all__ = ["run"]

FULL_S, QUICK_S = 600, 20
ROOT = Path(__file__).parent.parent.parent
PYTHON = ROOT / ".venv-fuzz/bin/python"
FOUND = ROOT / "dist/fuzz"
FRAMES = "frames"
ALL = (*TARGETS, FRAMES)

INPUT_BYTES_MAX = 8192
KEPT_BYTES_MAX = 2048
"""Of an input that is kept: longer ones cover no more of the code, only parts of it more often."""
INPUT_S_MAX = 10
MEMORY_MIB_MAX = 2048
LATE_S_MAX = 120.0
"""How long a fuzzer may take beyond its time: it reads its corpus first, with coverage."""
MERGE_S_MAX = 600.0

BATCH = 64
"""Conversations, all at once."""
HEARD_S_MAX = 0.3
GOOD_S_MAX = 3.0
MEMORY_MORE_MIB_MAX = 16.0
DESCRIPTORS_MORE_MAX = 8
SETTLE_S = 45.0
"""The bridge looks each 15 s for upstream connections unused for 15 s."""


async def run(options: Options) -> list[Finding]:
    """Fuzz each target and the port for 10 minutes, or for 20 seconds where it must be quick."""
    return await fuzzed(ALL, QUICK_S if options.quick else FULL_S, options.seed)


async def fuzzed(names: Sequence[str], seconds: int, seed: int) -> list[Finding]:
    why, ok = missing()
    if why:
        findings = [Finding("fuzz", name, 0, why, ok, {}) for name in names if name != FRAMES]
    else:
        cores = asyncio.Semaphore(len(os.sched_getaffinity(0)))
        findings = await asyncio.gather(*(target(name, seconds, seed, cores) for name in names if name != FRAMES))
    return [*findings, *([await port(seconds, seed)] if FRAMES in names else [])]


def missing() -> tuple[str, bool]:
    """Say why atheris can't run, if it can't, and whether that is as it may be: it has no wheel for each platform."""
    if not PYTHON.exists():
        return f"not run: {PYTHON.parent.parent.name} is missing, which `make fuzz` makes", False
    if subprocess.run([str(PYTHON), "-c", "import atheris"], capture_output=True, check=False).returncode:
        return "not run: atheris has no wheel for this platform and Python", True
    return "", True


# The translation's functions


async def target(name: str, seconds: int, seed: int, cores: asyncio.Semaphore) -> Finding:
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
        return judged(name, *await libfuzzer(name, options, folders(name), seconds + LATE_S_MAX))


def folders(name: str) -> list[Path]:
    """Give the folders of a target's inputs as libFuzzer reads them, the one that takes new ones first."""
    found, begun = FOUND / name / "found", FOUND / name / "begun"
    found.mkdir(parents=True, exist_ok=True)
    begun.mkdir(exist_ok=True)
    for data in (*kept(name), *importlib.import_module(f"tests.fuzz.{name}").seeds()):
        (begun / hashlib.sha1(data).hexdigest()).write_bytes(data)
    return [found, begun]


async def libfuzzer(
    name: str, options: dict[str, int | str], inputs: Iterable[Path], limit_s: float
) -> tuple[str, int | None]:
    """Run it and give what it said, and its exit code. Raises TimeoutError."""
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
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return said.decode("utf-8", "replace"), process.returncode


def judged(name: str, said: str, code: int | None) -> Finding:
    runs = max((int(count) for count in re.findall(r"^(?:#|Done )(\d+)", said, re.MULTILINE)), default=0)
    covered = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", said)
    broken = re.search(r"=== Uncaught Python exception: ===\n(.*)", said)
    written = re.search(r"Test unit written to (\S+)", said)
    figures: dict[str, float | str] = {}
    if covered:
        figures |= dict(zip(("edges covered", "features", "inputs"), map(float, covered[-1]), strict=True))
    if code == 0 and runs:
        return Finding("fuzz", name, runs, "every property held", ok=True, figures=figures)
    what = broken[1] if broken else said.strip().rpartition("\n")[2][:200]
    note = written[1] if written else ""
    return Finding("fuzz", name, runs, f"broken: {what}", ok=False, figures=figures, note=note)


async def keep_anew(name: str) -> str:
    """Make a target's kept corpus anew, and say of how many inputs how many are kept."""
    least = FOUND / name / "least"
    shutil.rmtree(least, ignore_errors=True)
    least.mkdir(parents=True)
    inputs = folders(name)
    said, code = await libfuzzer(name, {"merge": 1, "max_len": KEPT_BYTES_MAX}, [least, *inputs], MERGE_S_MAX)
    if code != 0:
        raise RuntimeError(f"expected {name} to be merged, found exit code {code}: {said[-500:]}")
    keep(name, (path.read_bytes() for path in least.iterdir()))
    return f"{name}: {len(kept(name))} kept of {sum(len(list(folder.iterdir())) for folder in inputs)}"


# The port


async def port(seconds: float, seed: int) -> Finding:
    """Say what should not be said to a bridge, and see after each batch that it serves as before."""
    with tempfile.TemporaryDirectory() as name:
        async with (
            Emulator() as emulator,
            bridge(f"127.0.0.1:{emulator.port}", folder=Path(name)) as subject,
            grpc.aio.insecure_channel(subject.address) as channel,
        ):
            return await attacked(subject, ChatCompletionServiceStub(channel), seconds, seed)


async def attacked(subject: Process, stub: ChatCompletionServiceStub, seconds: float, seed: int) -> Finding:
    await good_call_s(stub)
    descriptors = subject.descriptors
    good_s: list[float] = []
    memory_mib: list[float] = []
    count, wrong = 0, ""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not wrong:
        said = [http2.conversation(Random(f"{seed}:{number}")) for number in range(count, count + BATCH)]
        await asyncio.gather(*(spoken(subject.address, each) for each in said))
        count += BATCH
        try:
            good_s.append(await good_call_s(stub))
        except (grpc.aio.AioRpcError, AssertionError) as error:
            wrong = f"a good call failed after conversations {count - BATCH} to {count - 1}: {error!r}"
        if not subject.alive:
            wrong = f"the process ended after conversations {count - BATCH} to {count - 1}"
        else:
            memory_mib.append(subject.memory_mib)
    left = await settled(subject, descriptors) if subject.alive else -1
    fifth = max(len(memory_mib) // 5, 1)
    early, late = statistics.median(memory_mib[fifth : 2 * fifth] or memory_mib), statistics.median(memory_mib[-fifth:])
    if not wrong and late - early > MEMORY_MORE_MIB_MAX:
        wrong = f"memory grew by {late - early:.1f} MiB"
    if not wrong and left > descriptors + DESCRIPTORS_MORE_MAX:
        wrong = f"{left} descriptors stayed open, {descriptors} before"
    if not wrong and any(mark in subject.said for mark in (' File "', "BRIDGE_FAULT")):
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
            "descriptors after": left,
        },
        note=f"after each {BATCH} conversations a good call within {GOOD_S_MAX:g} s; "
        f"memory grows by at most {MEMORY_MORE_MIB_MAX:g} MiB",
    )


async def spoken(address: str, said: bytes) -> None:
    """Say it, listen for a moment, and leave without a word."""
    host, _, number = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(number))
    with contextlib.suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(HEARD_S_MAX):
            writer.write(said)
            while await reader.read(65_536):
                pass
    writer.transport.abort()


async def good_call_s(stub: ChatCompletionServiceStub) -> float:
    request = CreateChatCompletionRequest(model="echo")
    request.messages.add(role="user", text="still there?")
    began = time.monotonic()
    reply = await stub.CreateChatCompletion(request, timeout=GOOD_S_MAX)
    assert reply.choices[0].message.text == "You said: still there?"
    return time.monotonic() - began


async def settled(subject: Process, descriptors: int) -> int:
    """Give the descriptors that stay when all connections have been left for a while."""
    end = time.monotonic() + SETTLE_S
    while (left := subject.descriptors) > descriptors + DESCRIPTORS_MORE_MAX and time.monotonic() < end:  # noqa: ASYNC110
        await asyncio.sleep(0.5)
    return left


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(ALL)}; all, where none is named")
    parser.add_argument("--seconds", type=int, default=QUICK_S, help="how long each (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="not 0 (%(default)s)")
    parser.add_argument("--keep", action="store_true", help="make the kept corpus anew behind it")
    asked = parser.parse_args()
    names = asked.targets or ALL
    if unknown := set(names) - set(ALL):
        parser.error(f"expected targets among {', '.join(ALL)}, found {', '.join(sorted(unknown))}")
    findings = asyncio.run(fuzzed(names, asked.seconds, asked.seed))
    print(*lines(findings), sep="\n")
    if any(not each.ok for each in findings):
        return 1
    for name in names if asked.keep else ():
        if name != FRAMES:
            print(asyncio.run(keep_anew(name)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
