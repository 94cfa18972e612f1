"""Count what programs of others find at the ports: `python -m tests.interop.grpc`, for docs/reliability.md."""

import asyncio
import sys
import tempfile
from pathlib import Path

from lab.environment import describe_environment
from lab.report import RELIABILITY, Report, Result, run_parts
from tests.interop.grpc import judges, known
from tests.interop.grpc.interop_service import CASES, TestService
from tests.interop.grpc.judges import Judgement
from tests.interop.grpc.transports import TRANSPORTS, WEB
from tests.kit import go_tools

PART = "others"


async def judge_all(folder: Path) -> list[Result]:
    """Return a result for each program and engine, and for the web port."""
    results = []
    for engine in TRANSPORTS:
        results.append(_to_result(go_tools.INTEROP_CLIENT, engine, await judge_interop(engine, folder)))
        judgement = await judges.judge_conformance(engine, folder)
        results.append(_to_result(go_tools.CONNECT_CONFORMANCE, engine, judgement))
        if engine in known.list_held(TRANSPORTS):
            judgement = await judges.judge_http2(engine, folder / "report.xml")
            results.append(_to_result(go_tools.H2SPEC, engine, judgement))
    for port in WEB:
        judgement = await judges.judge_conformance(port, folder)
        results.append(_to_result(go_tools.CONNECT_CONFORMANCE, f"{port} port", judgement))
    return results


async def judge_interop(engine: str, folder: Path) -> Judgement:
    """Run each case of the interop client, without TLS and with it."""
    judgement = Judgement()
    for case in CASES:
        for certificates in (None, folder):
            run = await judges.run_interop_case(case, engine, certificates, TestService())
            judgement.add(Judgement(1, int(run.exit_code == 0), 0, run.output))
    return judgement


def _to_result(tool: go_tools.Tool, engine: str, judgement: Judgement) -> Result:
    explained = f", {judgement.known} known to fail, with reasons" if judgement.known else ""
    result = f"{judgement.passed} of {judgement.cases}{explained}"
    return Result(f"{tool.package} {tool.version}: {engine}", judgement.cases, result, judgement.is_ok)


def main() -> int:
    for tool in (go_tools.INTEROP_CLIENT, go_tools.CONNECT_CONFORMANCE, go_tools.H2SPEC):
        go_tools.build(tool)
    bad = run_parts(RELIABILITY, {PART: judge}, describe_environment(("grpcio",)), keeps=True)
    RELIABILITY.write_tables()
    return 1 if bad else 0


def judge() -> Report:
    with tempfile.TemporaryDirectory() as folder:
        return Report(asyncio.run(judge_all(Path(folder))))


if __name__ == "__main__":
    sys.exit(main())
