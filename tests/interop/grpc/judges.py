"""Programs of others that judge the call port, run against an engine: grpc-go's interop client, Connect's conformance
suite and h2spec.

`known.py` has what may fail. Each function needs its program, which `go_tools.build` builds.
"""

import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import trustme

from bridge.settings import Settings
from bridge.telemetry import CallRecord, Observer
from tests.interop.grpc import known
from tests.interop.grpc.interop_service import TestService
from tests.interop.grpc.scripted import make_boundary
from tests.interop.grpc.transports import TRANSPORTS, WEB
from tests.kit import go_tools

UNEXPECTED = "gRPC Unexpected Requests/**"
CONFORMANCE_RUNS: dict[str, Sequence[tuple[str, ...]]] = {"grpcio": (("--skip", UNEXPECTED), ("--run", UNEXPECTED))}
"""What the conformance suite is told to run, if not all at once. With grpc.aio a call with an unknown grpc-encoding
breaks good ones on its connection (grpc_aio.py, row 15), so those calls run by themselves."""
_TOTAL = re.compile(
    r"^Total cases: (\d+)\n(\d+) passed, (\d+) failed(?:\n\(Another (\d+) failed as expected)?", re.MULTILINE
)


@dataclass
class Judgement:
    """How many cases there were, how many are as they should be, and how many are known to fail; and the output."""

    cases: int = 0
    passed: int = 0
    known: int = 0
    output: str = ""

    @property
    def is_ok(self) -> bool:
        """Whether all of it is as it should be or known to fail, and there was something to judge."""
        return 0 < self.cases == self.passed + self.known

    def add(self, other: "Judgement") -> None:
        self.cases += other.cases
        self.passed += other.passed
        self.known += other.known
        self.output += other.output


@dataclass
class InteropRun:
    """What came of a case of the interop client: its exit code, and what the bridge recorded and still holds."""

    exit_code: int
    output: str
    codes: list[str]
    in_flight: int


@dataclass
class _Records(Observer):
    all: list[CallRecord] = field(default_factory=list)

    def end(self, record: CallRecord) -> None:
        self.all.append(record)


async def run_interop_case(case: str, engine: str, certificates: Path | None, service: TestService) -> InteropRun:
    """Run a case of grpc-go's interop client; with TLS, if there is a folder to write certificates to."""
    settings, options = Settings(listen="127.0.0.1:0"), []
    if certificates is not None:
        settings = Settings(listen="127.0.0.1:0", tls=_write_certificates(certificates))
        options = ["--use_tls", "--use_test_ca", f"--ca_file={certificates / 'ca.crt'}"]
        options.append("--server_host_override=localhost")
    records = _Records()
    boundary = make_boundary(service, settings, [records])
    async with TRANSPORTS[engine](boundary, settings) as address:
        host, _, port = address.rpartition(":")
        server = (f"--server_host={host}", f"--server_port={port}")
        exit_code, output = await go_tools.run(go_tools.INTEROP_CLIENT, *server, f"--test_case={case}", *options)
    codes = [record.code for record in records.all]
    return InteropRun(exit_code, output, codes, boundary.drain.in_flight)


async def judge_conformance(engine: str, folder: Path) -> Judgement:
    """Run Connect's conformance suite; it writes certificates to the folder."""
    judgement = Judgement()
    for run in CONFORMANCE_RUNS.get(engine, ((),)):
        lists = known.FOLDER / "conformance"
        files = {"--known-failing": lists / f"{engine}.txt", "--known-flaky": lists / f"{engine}-flaky.txt"}
        names = [word for option, file in files.items() if file.exists() for word in (option, f"@{file}")]
        server = (sys.executable, "-m", "tests.interop.grpc.conformance_server", engine, folder)
        options = (
            "--mode",
            "server",
            "--max-servers",
            "1",
            "--conf",
            lists / ("web.yaml" if engine in WEB else "grpc.yaml"),
        )
        exit_code, output = await go_tools.run(go_tools.CONNECT_CONFORMANCE, *options, *names, *run, "--", *server)
        judgement.add(read_total(exit_code, output))
    return judgement


def read_total(exit_code: int, output: str) -> Judgement:
    """Return what the suite's last lines say; if it failed by its exit code too, nothing of it counts."""
    total = _TOTAL.search(output)
    if total is None or (exit_code and total[3] == "0"):
        return Judgement(cases=1, output=output)
    return Judgement(int(total[1]), int(total[2]), int(total[4] or 0), output)


async def judge_http2(engine: str, report: Path) -> Judgement:
    """Run h2spec; it writes its report to the file."""
    settings = Settings(listen="127.0.0.1:0")
    boundary = make_boundary(TestService(), settings)
    async with TRANSPORTS[engine](boundary, settings) as address:
        host, _, port = address.rpartition(":")
        _, output = await go_tools.run(go_tools.H2SPEC, "--strict", "-h", host, "-p", port, "-j", report)
    outcomes = read_outcomes(report.read_text(encoding="utf-8"))  # noqa: ASYNC240 - nothing else runs by now
    expected = known.read(known.FOLDER / "h2spec" / f"{engine}.txt")
    failed = {case for case, has_passed in outcomes if not has_passed}
    explained = len(failed & expected) if failed >= expected else 0  # a list that is not current explains nothing
    left = f"calls in flight: {boundary.drain.in_flight}\n" if boundary.drain.in_flight else ""
    return Judgement(len(outcomes) + len(left), len(outcomes) - len(failed), explained, output + left)


def read_outcomes(report: str) -> list[tuple[str, bool]]:
    """Return the cases of h2spec's report, and whether each passed."""
    cases = ET.fromstring(report).iter("testcase")
    return [(f"{case.get('package')}: {case.get('classname')}", len(case) == 0) for case in cases]


def _write_certificates(folder: Path) -> dict[str, str]:
    """Write a server's certificate and key, and the authority's certificate; return the settings of the server."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(folder / "ca.crt")
    (folder / "server.key").touch(mode=0o600)
    issued.private_key_pem.write_to_path(folder / "server.key")
    issued.cert_chain_pems[0].write_to_path(folder / "server.crt")
    return {"cert_file": str(folder / "server.crt"), "key_file": str(folder / "server.key")}
