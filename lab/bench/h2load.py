"""Load from outside Python: nghttp2's h2load, over HTTP/2 for gRPC and over HTTP/1.1 for a gateway."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.bench.loads import HEADERS, Load
from lab.bench.processes import BenchmarkError, Process, pin
from tests.kit.processes import find_program, run_program

__all__ = ["MISSING", "Ran", "run", "version"]

MISSING = "h2load is missing (Debian: apt-get install nghttp2-client)"
RUN_S_MAX = 300
ANSWER_SLACK = 0.002
"""Of the answers' bytes: paced chunks have clock readings in them, whose digits may grow."""
FINISHED = re.compile(r"finished in ([\d.]+)(us|ms|s|m),.*?(\d+) succeeded.*?\((\d+)\) data", re.DOTALL)
IN_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


@dataclass(frozen=True)
class Ran:
    """The seconds that one run of `units` took, and CPU seconds of the server's processes."""

    units: int
    wall_s: float
    cpu_each_s: tuple[float, ...]
    upstream_cpu_s: float

    @property
    def cpu_s(self) -> float:
        return sum(self.cpu_each_s)

    @property
    def rate(self) -> float:
        return self.units / self.wall_s

    @property
    def cpu_us(self) -> float:
        return self.cpu_s / self.units * 1e6

    @property
    def busy(self) -> float:
        """Of one core."""
        return self.cpu_s / self.wall_s


def version() -> str | None:
    """Return h2load's version, or None if it is not installed."""
    program = find_program("h2load")
    output = program and run_program(program, "--version").out
    return output.strip().removeprefix("h2load ") if output else None


def run(
    server: Process,
    upstream: Process,
    load: Load,
    calls: int,
    *,
    protocol: str,
    files: Path,
    answer_bytes: int,
    connections: int,
    cores: Sequence[int],
) -> Ran:
    """Make so many calls, `at_once` at any time. BenchmarkError where an answer is missing or not of `answer_bytes`."""
    body = files / f"request.{protocol}"
    body.write_bytes(load.frame() if protocol == "grpc" else load.document())
    command = ["h2load", "-n", str(calls), "-d", str(body)]
    command += _grpc(server, load, connections) if protocol == "grpc" else _http(server, load)
    before = server.cpu_each_s(), upstream.cpu_s()
    done = run_program(*pin(command, cores), timeout_s=RUN_S_MAX)
    after = server.cpu_each_s(), upstream.cpu_s()
    figures = FINISHED.search(done.out)
    if not figures:
        raise BenchmarkError(f"expected h2load's figures, found:\n{done.out}{done.err}")
    expected = calls * answer_bytes
    if int(figures[3]) != calls or abs(int(figures[4]) - expected) > expected * ANSWER_SLACK:
        raise BenchmarkError(
            f"expected {calls} answers of {answer_bytes} bytes from {server.address}, found:\n{done.out}"
        )
    each_s = tuple(end - begin for begin, end in zip(before[0], after[0], strict=True))
    return Ran(calls * load.units, float(figures[1]) * IN_S[figures[2]], each_s, after[1] - before[1])


def _grpc(server: Process, load: Load, connections: int) -> list[str]:
    clients = min(connections, load.at_once)
    headers = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    url = f"{'https' if server.tls else 'http'}://{server.address}{load.method}"
    return ["-c", str(clients), "-m", str(load.at_once // clients), *headers, url]


def _http(server: Process, load: Load) -> list[str]:
    headers = [word for name, value in HEADERS.items() for word in ("-H", f"{name}: {value}")]
    return ["--h1", "-c", str(load.at_once), *headers, f"http://{server.address}/v1/chat/completions"]
