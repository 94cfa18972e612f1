"""A file that is read again when it changes: certificates, keys and tokens are renewed under a running process.

What could not be read again leaves the content as it was: a renewal that is half done must not end the service.
"""

import contextlib
import re
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bridge.settings import SettingsError, UpstreamSettings

__all__ = ["WatchedFile", "api_key"]

_LOOK_S: Final = 1.0
"""How long a look at the file's state is good for: a change is taken up within this time."""


class WatchedFile:
    """The content of a file, as bytes. The first read must succeed. Safe to be asked from any thread.

    `name` is the setting that names the file. With `secret`, a file that everybody can read is refused.
    Raises SettingsError from `__init__`, and from nothing after it.
    """

    def __init__(self, path: Path, *, name: str, secret: bool = False) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._looked_at = time.monotonic()
        try:
            self._state = self._seen()
            if secret and path.stat().st_mode & stat.S_IROTH:
                raise SettingsError(f"{name}: expected a file that not everybody can read (chmod o-r), found {path}")
            self._content = path.read_bytes()
        except OSError as error:
            raise SettingsError(f"{name}: expected a readable file, found {path}: {error.strerror}") from None

    def read(self) -> bytes:
        """Give the content, as it is now or was at most _LOOK_S ago."""
        with self._lock:
            if time.monotonic() - self._looked_at >= _LOOK_S:
                self._looked_at = time.monotonic()
                try:
                    state = self._seen()
                    if state != self._state:
                        self._content = self._path.read_bytes()
                        self._state = state
                except OSError:
                    pass
            return self._content

    def _seen(self) -> tuple[int, int, int]:
        seen = self._path.stat()  # follows links: a Kubernetes secret is renewed by turning one
        return seen.st_mtime_ns, seen.st_ino, seen.st_size


def api_key(settings: UpstreamSettings) -> Callable[[], str] | None:
    """Give what gives the bridge's own key, as it is now; None where it has none. Raises SettingsError."""
    if settings.api_key is not None:
        key = _checked_key(settings.api_key.get_secret_value(), "upstream.api_key")
        return lambda: key
    if settings.api_key_file is None:
        return None
    name = "upstream.api_key_file"
    file = WatchedFile(settings.api_key_file, name=name, secret=True)
    last = _checked_key(_text(file), name)

    def read() -> str:
        nonlocal last
        with contextlib.suppress(SettingsError):  # half written: the old key still is one
            last = _checked_key(_text(file), name)
        return last

    return read


def _text(file: WatchedFile) -> str:
    return file.read().decode("utf-8", "replace").strip()


def _checked_key(key: str, name: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise SettingsError(f"{name}: expected a key of printable ASCII without spaces, found a secret that is none")
    return key
