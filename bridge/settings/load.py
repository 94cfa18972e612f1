"""Where each setting comes from, and the only reader of the environment.

From low to high precedence: a TOML file, the environment (`OLLM_BRIDGE_` and the name, nested by `__`), the command
line. An unknown name is an error, not a shrug: a misspelt limit is no limit.
"""

import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError
from pydantic_settings import EnvSettingsSource
from pydantic_settings import SettingsError as SourceError

from bridge.settings.model import ENV_PREFIX, Settings, setting_names

__all__ = ["Loaded", "SettingsError", "client_key", "load"]

_HIDDEN: Final = "set, not shown"


class SettingsError(Exception):
    """Settings that can't be used. The text has a line each, with the name, what was found and what was expected."""


class Loaded(BaseModel):
    """The settings, and for each name that some source gave, which one: `file`, `environment` or `flag`."""

    model_config = ConfigDict(frozen=True)

    settings: Settings
    origins: Mapping[str, str]

    def shown(self) -> list["Shown"]:
        """Give each setting as a person may see it: of a secret, only that there is one."""
        return [Shown(name, value, self.origins.get(name, "default")) for name, value in _flat(self.settings, "")]


class Shown(NamedTuple):
    """A setting's name, its value as JSON or a word in place of it, and where it is from."""

    name: str
    value: str
    origin: str


def _flat(model: BaseModel, prefix: str) -> list[tuple[str, str]]:
    found = []
    plain = model.model_dump(mode="json")
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            found += _flat(value, f"{prefix}{name}.")
        elif value is not None and (isinstance(value, SecretStr) or not field.repr):
            found.append((prefix + name, _HIDDEN))
        else:
            found.append((prefix + name, "unset" if value is None else json.dumps(plain[name], ensure_ascii=False)))
    return found


def load(
    *,
    config: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Loaded:
    """Merge and check all sources. `flags` is a tree as the settings are. Raises SettingsError, naming every fault."""
    sources = {
        "file": _read_file(config) if config else {},
        "environment": _read_environment(environ),
        "flag": dict(flags or {}),
    }
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, tree in sources.items():
        _merge(merged, tree)
        origins.update(dict.fromkeys(_names(tree), origin))
    try:
        settings = Settings(**merged)
    except ValidationError as error:
        lines = [_fault(each, origins) for each in error.errors(include_url=False)]
        raise SettingsError("\n".join(lines)) from None
    return Loaded(settings=settings, origins=origins)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: expected a readable TOML file, found: {error.strerror}") from None
    except ValueError as error:
        raise SettingsError(f"{path}: expected TOML, found: {error}") from None


def client_key() -> str | None:
    """Give the key that the command line's own client sends, from `OLLM_API_KEY`; None where there is none."""
    return os.environ.get("OLLM_API_KEY") or None


class _Environment(EnvSettingsSource):
    """pydantic's reader, of the mapping that it is given."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = {name.lower(): value for name, value in environ.items()}
        super().__init__(Settings)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return self._environ


_SERVICE_LINK: Final = re.compile(
    r"OLLM_BRIDGE_([A-Z0-9_]+_)?(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_\d+_[A-Z]+(_PROTO|_PORT|_ADDR)?)?)"
)
"""What Kubernetes puts into each container of a namespace that has a Service named ollm-bridge, or ollm-bridge-…."""


def _read_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    ours = {
        name: value
        for name, value in environ.items()
        if name.upper().startswith(ENV_PREFIX) and not _SERVICE_LINK.fullmatch(name)
    }
    known = {name.replace(".", "__").upper() for name in setting_names()}
    for name in sorted(ours):
        if name.upper().removeprefix(ENV_PREFIX) not in known:
            raise SettingsError(f"{name}: expected the name of a setting, found none of this name")
    try:
        return _Environment(ours)()
    except SourceError as error:
        raise SettingsError(f"{error}: expected JSON for a list, such as '[\"x-team-id\"]'") from None


def _merge(into: dict[str, Any], tree: Mapping[str, Any]) -> None:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            own = into.setdefault(name, {})
            if isinstance(own, dict):
                _merge(own, value)
                continue
        into[name] = value


def _names(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    names = []
    for name, value in tree.items():
        names += _names(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [prefix + name]
    return names


_SECRETS: Final = frozenset({"upstream.api_key", "upstream.proxy"})
_USERINFO: Final = re.compile(r"//[^/\s]*@")


def _fault(error: Any, origins: Mapping[str, str]) -> str:
    name = ".".join(str(part) for part in error["loc"] if not str(part).startswith("function-"))
    known = name in setting_names()
    if error["type"] == "extra_forbidden":
        return f"{name}: expected the name of a setting, found none of this name"
    if name in _SECRETS:
        found = "a secret"
    elif known or name.rpartition(".")[0] in setting_names():  # a setting, or an item of one that is a list
        found = _USERINFO.sub("//[redacted]@", repr(error["input"]))
    elif isinstance(error["input"], Mapping):  # a rule about several settings
        found = _given(error["input"], f"{name}." if name else "")
    else:
        found = "no table"  # not shown: a key may be in it
    expected = error["msg"].removeprefix("Value error, expected ").removeprefix("Input should be ")
    where = f" (from the {origins[name]})" if known and name in origins else ""
    return f"{name or 'settings'}: expected {expected}, found {found}{where}"


def _given(table: Mapping[str, Any], prefix: str) -> str:
    """Say what a table sets; of a secret, and of what is no setting, not the value."""
    shown = []
    for name, value in table.items():
        hidden = prefix + name in _SECRETS or prefix + name not in setting_names()
        shown.append(f"{name} = {_HIDDEN if hidden else _USERINFO.sub('//[redacted]@', repr(value))}")
    return ", ".join(shown) or "none"
