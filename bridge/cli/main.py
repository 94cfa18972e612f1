"""The command line: `ollm-bridge serve | emulate | chat | check | healthcheck | demo`.

It parses the arguments, runs the command's module, and turns its end into an exit code: 0; 1 if a call or a check has
failed, or more than 2 by the class of its failure; 2 if the command or its settings can't be used. Results go to
standard output, all else to standard error.
"""

import argparse
import errno
import gc
import importlib
import io
import sys
from collections.abc import Callable, Sequence
from os import O_WRONLY, devnull, dup2
from os import open as open_descriptor
from pathlib import Path
from types import ModuleType
from typing import Final, TextIO

from bridge.cli.arguments import build_parser
from bridge.cli.defaults import UsageError

__all__ = ["main", "print_address"]

_INTERRUPTED: Final = 130
_OUTPUT_ERRORS: Final = frozenset({errno.EPIPE, errno.ENOSPC, errno.EIO})


def print_address(address: str, about: str = "") -> None:
    """Print the line that tells a person, or a program that has started this one, where it listens, and what it is."""
    print(f"listening on {address}{about and f' ({about})'}", flush=True)


def main(arguments: Sequence[str] | None = None, *, on_ready: Callable[[str, str], None] = print_address) -> int:
    """Run one command and return its exit code.

    `on_ready` is called with the address and what the process says of itself, on the event loop, once `serve` or
    `emulate` accepts connections.
    """
    sys.stdout = sys.stdout or _open_nothing()
    sys.stderr = sys.stderr or _open_nothing()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # whatever a model writes can be shown on any terminal
    try:
        try:
            return _run(arguments, on_ready)
        finally:
            sys.stdout.flush()  # at its exit Python could only complain
    except OSError as error:
        if error.errno not in _OUTPUT_ERRORS:
            raise
        return _end_output(error)


def _run(arguments: Sequence[str] | None, on_ready: Callable[[str, str], None]) -> int:
    options = build_parser().parse_args(arguments, argparse.Namespace(on_ready=on_ready))
    try:
        code: int = _import_command(options.command).run(options)
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return _INTERRUPTED
    return code


def _import_command(name: str) -> ModuleType:
    """Import a command's module: what it makes stays, so no garbage is looked for meanwhile, or in it afterwards."""
    gc.disable()
    try:
        return importlib.import_module(f"bridge.cli.{name}")
    finally:
        gc.freeze()
        gc.enable()


def _open_nothing() -> TextIO:
    """Return a stream that discards everything, for one that was closed before the start."""
    return Path(devnull).open("w", encoding="utf-8")


def _end_output(error: OSError) -> int:
    """Discard what can't be written, since Python would try again at its exit, and return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            dup2(open_descriptor(devnull, O_WRONLY), stream.fileno())
    if error.errno != errno.EPIPE:  # a reader that has closed the pipe, such as `head`, has all it wants
        print(f"cannot write the output: {error.strerror}", file=sys.stderr)
    return 1
