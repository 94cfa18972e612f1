"""CPU of a unary call and of a chunk with TLS on both sides: from the caller, and to the upstream.

The connections are kept, so handshakes are not in it. The bare servers have TLS on the caller's side alone.
"""

from lab.bench.certificates import create_certificates
from lab.bench.fleet import Effort, fleet, in_turn
from lab.bench.loads import Load
from lab.bench.parts import read_runs
from lab.bench.parts.cpu import COST, FAST, RATE, UNARY
from lab.bench.parts.shapes import CONTENDERS
from lab.report import Report

__all__ = ["run"]


def run(effort: Effort) -> Report:
    report = Report()
    tls = create_certificates(effort.files / "tls")
    with fleet(effort.some(*CONTENDERS), effort.files, upstream="canned", tls=tls) as running:
        for case, load in {UNARY: Load.unary(), FAST: Load.fast()}.items():
            ran = in_turn(running, load, rounds=effort.rounds, run_s=effort.run_s)
            report.results += read_runs(f"{case}, TLS", ran, COST | RATE)
    return report
