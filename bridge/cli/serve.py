"""`serve`: the bridge, until SIGTERM or SIGINT."""

import argparse
import asyncio

from bridge.cli.options import load_settings, settings_errors_as_usage
from bridge.process.loops import loop_factory
from bridge.process.run import run as run_process

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Serve, and return the exit code. Raises UsageError if the settings can't be used."""
    with settings_errors_as_usage(), asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(run_process(load_settings(options), options.on_ready))
