"""(g) The calls as an ASGI application, under servers that have HTTP/2 and trailers: docs/asgi.md.

They are measured only if they are named. Beside (a) there is no log and no metric, and no bound on connections.
"""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from lab.bench import processes
from lab.bench.contenders.place import Place
from lab.bench.processes import Process
from lab.environment import ROOT
from tests.kit.processes import find_free_port

__all__ = ["FOLDER", "MISSING", "start_h2corn", "start_hypercorn"]

FOLDER: Final = ROOT / ".venv-asgi/bin"
MISSING: Final = "make .venv-asgi/ready"
_APPLICATION: Final = "examples.asgi:application"


def start_hypercorn(place: Place) -> AbstractContextManager[Process]:
    """Run the application under hypercorn, on the loop that all have."""
    port = find_free_port()
    return _start(FOLDER / "hypercorn", ["--worker-class", "uvloop", "--bind", f"127.0.0.1:{port}"], port, place)


def start_h2corn(place: Place) -> AbstractContextManager[Process]:
    """Run the application under h2corn."""
    port = find_free_port()
    return _start(FOLDER / "h2corn", ["--grpc", "--host", "127.0.0.1", "--port", str(port)], port, place)


def _start(program: Path, options: list[str], port: int, place: Place) -> AbstractContextManager[Process]:
    return processes.start(
        [str(program), *options, _APPLICATION],
        cores=place.cores,
        log=place.log(program.name),
        environment={
            "PYTHONPATH": f"{ROOT}:{ROOT / 'generated'}",
            "OLLM_BRIDGE_UPSTREAM__BASE_URL": place.upstream_url,
            "OLLM_BRIDGE_CALLS_PER_CALLER_MAX": "100000",
        },
        port=port,
    )
