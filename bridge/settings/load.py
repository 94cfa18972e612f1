"""Where settings come from, and what is wrong with them. The only reader of the environment.

From low to high precedence: a TOML file, the environment (`OLLM_BRIDGE_` and the name, nested by `__`; lists and tables
as JSON), the command line. An unknown name is an error: a misspelt limit is no limit. No message has a secret's value.
"""

import json
import os
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from bridge.settings.describe import Shown, describe_errors, describe_settings, describe_unknown, show_value
from bridge.settings.model import Settings
from bridge.settings.modes import find_mode_fault
from bridge.settings.names import is_list, is_secret, is_table, setting_names

__all__ = ["ENV_PREFIX", "Loaded", "SettingsError", "allows_color", "check_key", "client_key", "load"]

ENV_PREFIX: Final = "OLLM_BRIDGE_"


class SettingsError(Exception):
    """Settings that can't be used: a line for each fault, with the setting's name."""


@dataclass(frozen=True)
class Loaded:
    """The settings, and the origin of each that a source has set: `file`, `environment` or `flag`."""

    settings: Settings
    origins: Mapping[str, str]

    def describe(self) -> list[Shown]:
        """Return each setting as a person may see it. Of a secret, only whether it is set."""
        return describe_settings(self.settings, self.origins)


def load(
    *,
    config: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Loaded:
    """Merge and validate all sources. `flags` is a tree, as the settings are. Raises SettingsError with every fault."""
    sources = {
        "file": _read_file(config) if config else {},
        "environment": _read_environment(environ),
        "flag": dict(flags or {}),
    }
    known = setting_names()
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, tree in sources.items():
        _merge(merged, tree)
        origins.update(dict.fromkeys(_names(tree, known), origin))
    if config and (fault := find_mode_fault(config, is_secret=_has_secret(origins))):
        raise SettingsError(fault)
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as error:
        raise SettingsError("\n".join(describe_errors(error.errors(include_url=False), origins))) from None
    return Loaded(settings, origins)


def _has_secret(origins: Mapping[str, str]) -> bool:
    known = setting_names()
    return any(origin == "file" and name in known and is_secret(name) for name, origin in origins.items())


def client_key() -> str | None:
    """Return the key that the command line's client sends, from `OLLM_API_KEY`, or None if there is none.

    Raises SettingsError if no metadata can have it, such as with a line break.
    """
    key = os.environ.get("OLLM_API_KEY")
    return check_key(key, "OLLM_API_KEY") if key else None


def check_key(key: str, name: str) -> str:
    """Return a key that metadata and headers can have. Raises SettingsError, by the name, for any other."""
    if not key:
        raise SettingsError(f"{name}: the key is empty")
    if not _KEY.fullmatch(key):
        raise SettingsError(f"{name}: the key must be printable ASCII without spaces (value not shown)")
    return key


_KEY: Final = re.compile(r"[\x21-\x7e]+")


def allows_color() -> bool:
    """Return whether a terminal may be sent color: NO_COLOR (no-color.org) and dumb terminals forbid it."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


# Sources


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot read this settings file: {error.strerror}") from None
    except ValueError as error:
        raise SettingsError(f"{path}: not valid TOML: {error}") from None


_SERVICE_LINK: Final = re.compile(
    r"OLLM_BRIDGE_([A-Z0-9_]+_)?(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_\d+_[A-Z]+(_PROTO|_PORT|_ADDR)?)?)"
)
"""What Kubernetes sets in each container of a namespace that has a Service named ollm-bridge, or ollm-bridge-…."""


def _read_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    known = {_variable(name): name for name in setting_names()}
    tree: dict[str, Any] = {}
    faults = []
    for variable, text in sorted(environ.items()):
        if not variable.upper().startswith(ENV_PREFIX) or _SERVICE_LINK.fullmatch(variable):
            continue
        name = known.get(variable.upper())
        if name is None:
            faults.append(describe_unknown(variable, known, prefix=ENV_PREFIX))
            continue
        try:
            value = _parse_variable(name, text)
        except ValueError:
            example = '["x-team"]' if is_list(name) else '{"team": "search"}'
            faults.append(f"{variable}: expected JSON such as {example}, found {show_value(name, text)}")
            continue
        *sections, key = name.split(".")
        section = tree
        for each in sections:
            section = section.setdefault(each, {})
        section[key] = value
    if faults:
        raise SettingsError("\n".join(faults))
    return tree


def _variable(name: str) -> str:
    return ENV_PREFIX + name.replace(".", "__").upper()


def _parse_variable(name: str, text: str) -> Any:
    """Return the value of a variable: lists and tables are JSON, pydantic reads the rest. Raises ValueError."""
    return json.loads(text) if is_list(name) or is_table(name) else text


def _merge(into: dict[str, Any], tree: Mapping[str, Any]) -> None:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            own = into.setdefault(name, {})
            if isinstance(own, dict):
                _merge(own, value)
                continue
        into[name] = value


def _names(tree: Mapping[str, Any], known: Collection[str], prefix: str = "") -> list[str]:
    """Return the names that a tree sets. A table that is a setting's value, such as tags.fixed, counts as one."""
    names = []
    for key, value in tree.items():
        name = prefix + key
        is_section = isinstance(value, Mapping) and name not in known
        names += _names(value, known, f"{name}.") if is_section else [name]
    return names
