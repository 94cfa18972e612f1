"""What a process asks of its kernel at the start: no core dumps, which would hold keys, all the files it may open."""

import resource
from typing import Final

import structlog

from bridge.settings import Settings

__all__ = ["find_files_max", "harden", "warn_of_files_limit"]

_OTHER_FILES: Final = 64
"""Beside connections: the log, libraries, certificates, the admin port."""
_LOG: Final = structlog.get_logger("ollm_bridge")


def harden(settings: Settings) -> None:
    """Set the limits of this process, which its children inherit, and warn if connections and calls don't fit."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warn_of_files_limit(settings, _raise_files_limit())


def warn_of_files_limit(settings: Settings, files_max: int) -> None:
    """Warn if connections and calls don't fit."""
    ports = 2 if settings.web_listen else 1
    needed = ports * settings.connections.connections_max + settings.calls_max + _OTHER_FILES
    if files_max < needed:
        _LOG.warning(
            "the limit of open files is below connections.connections_max + calls_max: raise it (ulimit -n)",
            files_max=files_max,
            needed=needed,
        )


def find_files_max() -> int:
    """Return how many files a process may open at most."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def _raise_files_limit() -> int:
    """Raise the soft limit of open files to the hard one, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return hard
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):  # macOS says that there is no hard limit, and takes none
        return soft
    return hard
