"""The settings of a command, from its flags, the environment and its file."""

import argparse
import contextlib
from collections.abc import Iterator
from typing import Any

from bridge.cli.defaults import UsageError
from bridge.settings import Loaded, SettingsError, load

__all__ = ["load_settings", "settings_errors_as_usage"]


def load_settings(options: argparse.Namespace) -> Loaded:
    """Load the settings that the options override. Raises SettingsError."""
    flags: dict[str, Any] = {}
    if options.listen is not None:
        flags["listen"] = options.listen
    if options.web_listen is not None:
        flags["web_listen"] = options.web_listen
    if options.admin_listen is not None:
        flags["admin_listen"] = options.admin_listen
    if options.upstream is not None:
        flags["upstream"] = {"base_url": options.upstream}
    if getattr(options, "workers", None) is not None:
        flags["workers"] = int(options.workers) if options.workers.isdecimal() else options.workers
    return load(config=options.config, flags=flags)


@contextlib.contextmanager
def settings_errors_as_usage() -> Iterator[None]:
    """Turn a SettingsError into a UsageError, which the command line reports without importing the settings."""
    try:
        yield
    except SettingsError as error:
        raise UsageError(str(error)) from None
