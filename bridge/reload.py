"""The last good value of files that change: certificates, keys and tokens are renewed under a running process.

New content that can't be used leaves the value as it is, since a renewal that is half done must not end the service:
the log says so once per change, and again when the files are good. But a secret that was taken away must not stay in
force for ever: if its file can't be used for `grace_s`, there is no value any more. Modes are checked at each read. A
file of lines that was changed in place must end in a newline, or it may be half written; a file that replaced another
one is whole. Of certificates the log says when they end, and warns if that is soon.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Generic, Literal, NamedTuple, TypeAlias, TypeVar
from weakref import WeakSet

import structlog

from bridge.core.x509 import Validity, list_validities
from bridge.settings import SettingsError, find_mode_fault, show_path

__all__ = [
    "CertificateKind",
    "ExpiredFileError",
    "FileState",
    "Reloaded",
    "list_files",
    "list_unusable",
    "reload_now",
]

_CHECK_INTERVAL_S: Final = 1.0
"""How long the state of the files is trusted: a change takes effect within this time."""
_LOAD_TRIES: Final = 3
_EXPIRES_SOON_S: Final = 14 * 86400.0
"""Before the end of a certificate: two weeks are enough to find out why nobody has renewed it."""
_EXPIRES_SOON_SHARE: Final = 0.2
"""Of its life, if that is less: certificates of a day are renewed each day."""
_STAYS: Final = "a changed file can't be used, the last good one stays"
_LOG: Final = structlog.get_logger("ollm_bridge")

T = TypeVar("T")

_State = tuple[tuple[int, int, int, int] | None, ...]
_FILES: "Final[WeakSet[Reloaded[Any]]]" = WeakSet()
"""All that this process reloads, for `list_files`, `list_unusable` and `reload_now`."""

CertificateKind: TypeAlias = Literal["chain", "authorities"]
"""A chain ends with its first certificate that ends; of several authorities the last one counts."""


class FileState(NamedTuple):
    """What became of files that belong together, known by their first setting.

    `failure` is why they can't be used at present, else "". `validities` is of certificates, by setting.
    """

    setting: str
    paths: tuple[Path, ...]
    reloads: int
    failures: int
    failure: str
    validities: Mapping[str, Validity]


class ExpiredFileError(Exception):
    """The files of a value could not be used for longer than the value may outlive them."""


class Reloaded(Generic[T]):
    """The value that `parse` makes of the content of files. Safe to use from any thread.

    `files` has the path of each file by the name of its setting; `parse` gets their content in this order, and raises
    SettingsError, ValueError or OSError, without a secret in the text, if it can't be used. Files in `secret` must not
    be readable by everybody, those in `lines` must end in a newline if they were changed in place, those in
    `certificates` have certificates. Raises SettingsError from `__init__`, and nothing afterwards but ExpiredFileError
    if there is a `grace_s`.
    """

    def __init__(
        self,
        files: Mapping[str, Path],
        parse: Callable[..., T],
        *,
        secret: Collection[str] = (),
        lines: Collection[str] = (),
        certificates: Mapping[str, CertificateKind] | None = None,
        grace_s: float | None = None,
        check_interval_s: float = _CHECK_INTERVAL_S,
    ) -> None:
        self._files = dict(files)
        self._parse = parse
        self._names = ", ".join(files)
        self._secret = frozenset(secret)
        self._lines = frozenset(lines)
        self._certificates = dict(certificates or {})
        self._validities: dict[str, Validity] = {}
        self._reloads = 0
        self._failures = 0
        self._grace_s = grace_s
        self._check_interval_s = check_interval_s
        self._lock = threading.Lock()
        self._failure = ""
        self._failing_since = 0.0
        self._has_expired = False
        self._inodes: dict[str, int] = {}
        self._state, self._value = self._load()
        self._check_at = time.monotonic() + check_interval_s
        if self._is_news():
            self._warn_of_expiry()
        _FILES.add(self)

    @property
    def value(self) -> T:
        """The last good value, of files that were checked at most `check_interval_s` ago."""
        self._check_if_due()
        if self._has_expired:
            message = f"{self._names} can't be used for longer than reload_grace_s ({self._grace_s:g} s)"
            raise ExpiredFileError(message)
        return self._value

    @property
    def state(self) -> FileState:
        """What became of the files so far."""
        self._check_if_due()
        setting, paths = next(iter(self._files)), tuple(self._files.values())
        return FileState(setting, paths, self._reloads, self._failures, self._failure, self._validities)

    def check_now(self) -> None:
        """Look at the files at once."""
        with self._lock:
            self._check()

    def _check_if_due(self) -> None:
        # A thread that finds another one at it takes the value as it is.
        if time.monotonic() >= self._check_at and self._lock.acquire(blocking=False):
            try:
                self._check()
            finally:
                self._lock.release()

    def _check(self) -> None:
        """Load the files if they have changed, or could not be loaded the last time."""
        self._check_at = time.monotonic() + self._check_interval_s
        state = self._read_state()
        if state == self._state and not self._failure:
            return
        try:
            loaded, self._value = self._load()
        except SettingsError as error:
            self._keep_last(state, str(error))
            return
        self._state, self._failure, self._has_expired = loaded, "", False
        self._reloads += 1
        if self._is_news():
            expires = {f"{name} expires": _format_time(each.end) for name, each in self._validities.items()}
            _LOG.info("file reloaded", setting=self._names, **expires)
            self._warn_of_expiry()

    def _keep_last(self, state: _State, failure: str) -> None:
        """Note that the files can't be used, and let go of a value that they have outlived."""
        if not self._failure:
            self._failing_since = time.monotonic()
        previous, self._state, self._failure = (self._state, self._failure), state, failure
        if previous != (state, failure):
            self._failures += 1
            if self._is_news():
                _LOG.warning(_STAYS, setting=self._names, error=failure)
        failing_s = time.monotonic() - self._failing_since
        if self._grace_s is not None and failing_s >= self._grace_s and not self._has_expired:
            self._has_expired = True
            _LOG.error("a file could not be used for too long, its last content no longer counts", setting=self._names)

    def _is_news(self) -> bool:
        """Whether no other value of the same files has found this: the call port and the web port have one each."""
        others = [each for each in list(_FILES) if each is not self]
        found = [(each._files, each._state, each._failure) for each in others]  # noqa: SLF001 - of its own class
        return (self._files, self._state, self._failure) not in found

    def _load(self) -> tuple[_State, T]:
        """Return the files' state and value. Files that change while they are read are read again."""
        for _ in range(_LOAD_TRIES):
            state = self._read_state()
            contents = [self._read(name, path) for name, path in self._files.items()]
            try:
                value = self._parse(*contents)
            except (OSError, ValueError) as error:
                raise SettingsError(f"{self._names}: {error}") from None
            if state == self._read_state():
                self._validities = self._find_validities(contents)
                self._inodes = {name: each[2] for name, each in zip(self._files, state, strict=True) if each}
                return state, value
        raise SettingsError(f"{self._names}: the files keep changing while they are read")

    def _find_validities(self, contents: list[bytes]) -> dict[str, Validity]:
        found = {}
        for name, content in zip(self._files, contents, strict=True):
            each = _list_validities(content) if name in self._certificates else []
            if each:
                pick = min if self._certificates[name] == "chain" else max
                found[name] = pick(each, key=lambda validity: validity.end)
        return found

    def _warn_of_expiry(self) -> None:
        now = time.time()
        for name, (start, end) in self._validities.items():
            if end <= now:
                _LOG.error("a certificate has expired: replace it", setting=name, expires=_format_time(end))
            elif end - now < min(_EXPIRES_SOON_S, _EXPIRES_SOON_SHARE * (end - start)):
                _LOG.warning("a certificate expires soon: replace it", setting=name, expires=_format_time(end))

    def _read(self, name: str, path: Path) -> bytes:
        if fault := find_mode_fault(path, is_secret=name in self._secret):
            raise SettingsError(f"{name}: {fault}")
        content = _read(name, path)
        if name in self._lines and not content.endswith(b"\n") and content and self._is_same_file(name, path):
            found = "found none: replace the file by another one instead, which is whole at any time"
            raise SettingsError(f"{name}: expected a newline at the end of a file that is changed in place, {found}")
        return content

    def _is_same_file(self, name: str, path: Path) -> bool:
        state = _read_file_state(path)
        return state is not None and self._inodes.get(name) == state[2]

    def _read_state(self) -> _State:
        return tuple(_read_file_state(path) for path in self._files.values())


def list_files() -> Iterator[FileState]:
    """Yield what became of all files that this process reloads. Several values of the same files count once."""
    states = sorted((file.state for file in list(_FILES)), key=lambda state: state.reloads + state.failures)
    return iter({(state.setting, state.paths): state for state in states}.values())


def reload_now() -> None:
    """Look at all files at once, whose log lines say what came of it."""
    for file in list(_FILES):
        file.check_now()


def list_unusable() -> list[str]:
    """Return the first setting of each value whose files can't be used at present, in this process."""
    return sorted(file.setting for file in list_files() if file.failure)


def _list_validities(pem: bytes) -> list[Validity]:
    try:
        return list_validities(pem)
    except (ValueError, IndexError):  # the TLS library has taken it; that we can't read its time is no reason to refuse
        return []


def _format_time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _read_file_state(path: Path) -> tuple[int, int, int, int] | None:
    try:
        state = path.stat()  # follows links: Kubernetes renews a secret by turning one
    except OSError:
        return None
    return state.st_mtime_ns, state.st_size, state.st_ino, state.st_mode


def _read(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{name}: cannot read the file {show_path(path)}: {error.strerror}") from None
