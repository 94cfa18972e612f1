"""Who else may read or write a file: what is wrong with its mode."""

import stat
from pathlib import Path

from bridge.settings.describe import show_path

__all__ = ["find_mode_fault"]


def find_mode_fault(path: Path, *, is_secret: bool) -> str:
    """Return what is wrong with a file's mode, "" if nothing is.

    Nobody but its owner and group may write a file that the bridge trusts, nor read one with a secret. What is no
    regular file, or can't be looked at, is for its reader to complain about.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return ""
    if not stat.S_ISREG(mode):
        return ""
    if mode & stat.S_IWOTH:
        return f"the file {show_path(path)} must not be writable by everybody (chmod o-w)"
    if is_secret and mode & stat.S_IROTH:
        return f"the file {show_path(path)} must not be readable by everybody (chmod o-r)"
    return ""
