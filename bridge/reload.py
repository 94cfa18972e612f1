"""The last good value of files that change: certificates, keys and tokens are renewed under a running process.

New content that can't be used leaves the value as it is, since a renewal that is half done must not end the service.
The log says so once per change, and again when the files are good.
"""

import re
import stat
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Final, Generic, TypeVar

import structlog

from bridge.settings import SettingsError, UpstreamSettings, show_path

__all__ = ["Reloaded", "api_key_reader"]

_CHECK_INTERVAL_S: Final = 1.0
"""How long the state of the files is trusted: a change takes effect within this time."""
_LOAD_TRIES: Final = 3
_LOG: Final = structlog.get_logger("ollm_bridge")

T = TypeVar("T")

_State = tuple[tuple[int, int, int] | None, ...]


class Reloaded(Generic[T]):
    """The value that `parse` makes of the content of files. Safe to use from any thread.

    `files` has the path of each file by the name of its setting; `parse` gets their content in this order, and raises
    SettingsError, ValueError or OSError, without a secret in the text, if it can't be used. Files in `secret` must not
    be readable by everybody when they are first read. Raises SettingsError from `__init__`, and nothing afterwards.
    """

    def __init__(
        self,
        files: Mapping[str, Path],
        parse: Callable[..., T],
        *,
        secret: Collection[str] = (),
        check_interval_s: float = _CHECK_INTERVAL_S,
    ) -> None:
        self._files = dict(files)
        self._parse = parse
        self._names = ", ".join(files)
        self._secret = frozenset(secret)
        self._check_interval_s = check_interval_s
        self._lock = threading.Lock()
        self._failure = ""
        for name in self._secret:
            if _is_readable_by_everybody(self._files[name]):
                path = show_path(self._files[name])
                raise SettingsError(f"{name}: the file {path} must not be readable by everybody (chmod o-r)")
        self._state, self._value = self._load()
        self._check_at = time.monotonic() + check_interval_s

    @property
    def value(self) -> T:
        """The last good value, of files that were checked at most `check_interval_s` ago."""
        # A thread that finds another one at it takes the value as it is.
        if time.monotonic() >= self._check_at and self._lock.acquire(blocking=False):
            try:
                self._check()
            finally:
                self._lock.release()
        return self._value

    def _check(self) -> None:
        """Load the files if they have changed, or could not be loaded the last time."""
        self._check_at = time.monotonic() + self._check_interval_s
        state = self._read_state()
        if state == self._state and not self._failure:
            return
        try:
            loaded, self._value = self._load()
        except SettingsError as error:
            if (state, str(error)) != (self._state, self._failure):
                _LOG.warning(
                    "a changed file can't be used, the last good one stays", setting=self._names, error=str(error)
                )
            self._state, self._failure = state, str(error)
            return
        self._state, self._failure = loaded, ""
        _LOG.info("file reloaded", setting=self._names)
        for name in self._secret:
            if _is_readable_by_everybody(self._files[name]):
                _LOG.warning("a secret file is readable by everybody, the next start will refuse it", setting=name)

    def _load(self) -> tuple[_State, T]:
        """Return the files' state and value. Files that change while they are read are read again."""
        for _ in range(_LOAD_TRIES):
            state = self._read_state()
            contents = [_read(name, path) for name, path in self._files.items()]
            try:
                value = self._parse(*contents)
            except (OSError, ValueError) as error:
                raise SettingsError(f"{self._names}: {error}") from None
            if state == self._read_state():
                return state, value
        raise SettingsError(f"{self._names}: the files keep changing while they are read")

    def _read_state(self) -> _State:
        return tuple(_read_file_state(path) for path in self._files.values())


def _read_file_state(path: Path) -> tuple[int, int, int] | None:
    try:
        state = path.stat()  # follows links: Kubernetes renews a secret by turning one
    except OSError:
        return None
    return state.st_mtime_ns, state.st_size, state.st_ino


def _read(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{name}: cannot read the file {show_path(path)}: {error.strerror}") from None


def _is_readable_by_everybody(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) and bool(mode & stat.S_IROTH)


def api_key_reader(settings: UpstreamSettings) -> Callable[[], str] | None:
    """Return a function that returns the current API key, or None if none is configured. Raises SettingsError."""
    if settings.api_key is not None:
        key = _check_key(settings.api_key.get_secret_value(), "upstream.api_key")
        return lambda: key
    if settings.api_key_file is None:
        return None
    name = "upstream.api_key_file"
    file = Reloaded(
        {name: settings.api_key_file},
        lambda content: _check_key(content.decode("utf-8", "replace").strip(), name),
        secret={name},
    )
    return lambda: file.value


def _check_key(key: str, name: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise SettingsError(f"{name}: the key must be printable ASCII without spaces (value not shown)")
    return key
