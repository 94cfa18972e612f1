"""The upstream's own limit, on a core of its own: beside nginx with a fixed body, where that is installed."""

import contextlib
import sys
from collections.abc import Iterator

from lab.bench import processes
from lab.bench.canned import SENTENCE, reply
from lab.bench.contenders import Contender
from lab.bench.contenders.place import Place
from lab.bench.fleet import UPSTREAMS, Effort, fleet, in_turn
from lab.bench.loads import Load
from lab.bench.parts import read_runs
from lab.bench.processes import Process
from lab.report import Report
from tests.kit.processes import find_free_port, find_program

__all__ = ["run"]

METRICS = {"a second": lambda ran: ran.rate, "CPU µs": lambda ran: ran.cpu_us}
NGINX_MISSING = "nginx is missing (Debian: apt-get install nginx-light); the upstream is not compared with it"


def _canned(place: Place) -> contextlib.AbstractContextManager[Process]:
    return processes.start([sys.executable, *UPSTREAMS["canned"]], cores=place.cores, log=place.log("canned_alone"))


@contextlib.contextmanager
def _nginx(place: Place) -> Iterator[Process]:
    """One worker that answers every request with the upstream's ordinary answer, and keeps connections as that does."""
    port, home = find_free_port(), place.files / "nginx"
    home.mkdir(exist_ok=True)
    body = reply(SENTENCE * 5).decode()
    temporary = " ".join(
        f"{name}_temp_path {home}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = home / "nginx.conf"
    config.write_text(
        f"daemon off; master_process off; worker_processes 1; pid {home}/pid; error_log stderr;\n"
        "events { worker_connections 1024; }\n"
        f"http {{ access_log off; keepalive_requests 100000000; default_type application/json; {temporary}\n"
        f"  server {{ listen 127.0.0.1:{port}; location / {{ return 200 '{body}'; }} }} }}\n"
    )
    command = [str(find_program("nginx")), "-p", str(home), "-c", str(config)]
    with processes.start(command, cores=place.cores, log=place.log("nginx"), port=port) as nginx:
        yield nginx


CANNED = Contender("canned", "the upstream of these benchmarks", "aiohttp", _canned)
NGINX = Contender("nginx", "nginx, one worker", "aiohttp", _nginx)


def run(effort: Effort) -> Report:
    report = Report()
    beside = [CANNED, NGINX] if find_program("nginx") else [CANNED]
    with fleet(beside, effort.files, upstream="canned") as running:
        for measure, load, contenders in (
            ("an answer", Load.unary(), beside),
            ("a chunk", Load.fast(), [CANNED]),
        ):
            ran = in_turn(running.of(contenders), load, rounds=max(1, effort.rounds - 2), run_s=effort.run_s / 2)
            report.results += read_runs(measure, ran, METRICS)
    if NGINX not in beside:
        report.notes.append(f"{NGINX_MISSING}.")
    return report
