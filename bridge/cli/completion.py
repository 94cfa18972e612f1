"""`completion`: what a shell needs to complete the commands and their flags.

The files in `shell/` are generated from the arguments (`make generate`), so that neither this command nor a shell that
completes needs the generator, nor a start of Python at each Tab.
"""

import argparse
import sys
from importlib import resources

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Print the shell's file."""
    file = resources.files("bridge.cli").joinpath("shell", f"ollm-bridge.{options.shell}")
    sys.stdout.write(file.read_text(encoding="utf-8"))
    return 0
