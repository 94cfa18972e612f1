"""Commands of `ollm-bridge` in processes that have imported it already: each a fork of one server, made at the first.

To start Python and to import the bridge takes most of the time of a command that ends at once. Where that start is the
subject, `processes.py` has the command as people run it.
"""

import asyncio
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.kit.processes import Ended, build_command_environment
from tests.kit.waiting import WAIT_S

__all__ = ["run_command", "run_in_environment"]

_MODULES: Final = ["bridge.cli.chat", "bridge.cli.main", "bridge.cli.serve", "bridge.process.run", "tests.kit.forks"]


async def run_command(*arguments: str, **environment: str) -> Ended:
    """Run a command of `ollm-bridge` to its end."""
    return await run_in_environment(*arguments, environment=build_command_environment(environment))


async def run_in_environment(*arguments: str, environment: Mapping[str, str]) -> Ended:
    """Run a command of `ollm-bridge` to its end. `environment` is all of it."""
    return await asyncio.to_thread(_run, arguments, environment)


def _run(arguments: tuple[str, ...], environment: Mapping[str, str]) -> Ended:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_MODULES)
    with tempfile.TemporaryDirectory() as folder:
        out, err = (Path(folder) / name for name in ("out", "err"))
        process = context.Process(target=_become, args=(arguments, dict(environment), str(out), str(err)))
        process.start()
        try:
            process.join(2 * WAIT_S)
            assert process.exitcode is not None, f"expected the end of {arguments}:\n{err.read_text()}"
            return Ended(process.exitcode, out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8"))
        finally:
            process.kill()
            process.join()


def _become(arguments: tuple[str, ...], environment: Mapping[str, str], out: str, err: str) -> None:
    from bridge.cli.main import main  # noqa: PLC0415 - the fork has it; whoever forks need not

    os.environ.clear()
    os.environ.update(environment)
    for number, path in ((1, out), (2, err)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, number)
        os.close(opened)
    sys.exit(main(arguments))
