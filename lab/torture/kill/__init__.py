"""Take away what the bridge depends on, and restore it: the upstream, its name, a worker, the log's disk, the clock.

Each case has the status that callers must get meanwhile, and the time to recover. Names and disks are set up in a
mount namespace of the bridge's own (`unshare`), the clock is libfaketime's; a case for which the machine lacks the
means says so.
"""

import tempfile
from pathlib import Path

from lab.report import Result
from lab.torture.kill.clocks import jump_clocks
from lab.torture.kill.disks import fill_disks
from lab.torture.kill.names import change_names
from lab.torture.kill.upstream import kill_upstream, stop_upstream
from lab.torture.kill.workers import kill_supervisor, kill_worker
from lab.torture.options import Options

__all__ = ["run"]


async def run(options: Options) -> list[Result]:
    """Run each case."""
    rounds = 2 if options.quick else 20
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results = [*await kill_upstream(folder, rounds), await stop_upstream(folder, rounds)]
        results += await change_names(folder, rounds=1 if options.quick else 3)
        results += [await kill_worker(folder, rounds=1 if options.quick else 5), await kill_supervisor(folder)]
        results += [*await fill_disks(folder), *await jump_clocks(folder)]
        return results
