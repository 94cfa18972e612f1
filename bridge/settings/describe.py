"""How settings, and what is wrong with them, are shown to a person. No secret's value is in any text made here.

A secret may also stand where it does not belong: a key instead of the path of its file, a password in a URL. So of a
path only what looks like one is shown, of a URL neither user nor query, and of an unknown name not the value.
"""

import difflib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from bridge.settings.model import Settings
from bridge.settings.names import is_list, is_path, is_secret, is_table, setting_names

__all__ = ["Shown", "describe_errors", "describe_settings", "describe_unknown", "show_path", "show_value"]

_SHOWN_CHARS_MAX: Final = 200
_LIKENESS_MIN: Final = 0.75
_NOT_SHOWN: Final = "a value (not shown)"


class Shown(NamedTuple):
    """A setting's name, its value as JSON or a word instead of it, and its origin."""

    name: str
    value: str
    origin: str


def describe_settings(settings: Settings, origins: Mapping[str, str]) -> list[Shown]:
    """Return each setting as a person may see it. Of a secret, only whether it is set."""
    return [Shown(name, value, origins.get(name, "default")) for name, value in _describe_section(settings, "")]


def _describe_section(section: BaseModel, prefix: str) -> list[tuple[str, str]]:
    found = []
    plain = section.model_dump(mode="json")
    for key in type(section).model_fields:
        name, value = prefix + key, getattr(section, key)
        if isinstance(value, BaseModel):
            found += _describe_section(value, f"{name}.")
        elif value is None:
            found.append((name, "unset"))
        elif is_secret(name) or (isinstance(value, Path) and not _is_path_like(str(value))):
            found.append((name, "set, not shown"))
        else:
            found.append((name, json.dumps(plain[key], ensure_ascii=False)))
    return found


def describe_unknown(name: str, known: Iterable[str], *, prefix: str = "") -> str:
    """Return the message about a name that is no setting, with the known name that is closest to it.

    All of them begin with `prefix`, which would make short names look alike.
    """
    by_name = {each[len(prefix) :].lower(): each for each in known}
    closest = difflib.get_close_matches(name[len(prefix) :].lower(), by_name, n=1, cutoff=_LIKENESS_MIN)
    return f"{name}: unknown setting" + (f" (did you mean {by_name[closest[0]]}?)" if closest else "")


def describe_errors(errors: Iterable[ErrorDetails], origins: Mapping[str, str]) -> list[str]:
    """Return a line for each fault that pydantic has found, with the setting's name and origin."""
    known = setting_names()
    unknown: list[str] = []
    expected: dict[tuple[str, str, str], list[str]] = {}
    for error in errors:
        name, setting = _locate(error, known)
        if error["type"] == "extra_forbidden":
            unknown.append(describe_unknown(name, {*known, *Settings.model_fields}))
            continue
        found = show_value(setting, error["input"]) if setting in known else _show_section(name, error["input"])
        origin = f" (from the {origins[setting]})" if setting in origins else ""
        expected.setdefault((name, found, origin), []).append(_EXPECTED.get(error["type"]) or _simplify(error["msg"]))
    faults = [
        f"{name or 'settings'}: expected {' or '.join(words)}, found {found}{origin}"
        for (name, found, origin), words in expected.items()
    ]
    return faults + unknown


_EXPECTED: Final = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "a table",
    "float_parsing": "a number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "model_type": "a table of settings",
    "path_type": "a path",
    "string_too_short": "a text that is not empty",
    "string_type": "a text",
    "tuple_type": "a list",
}
"""What was expected, by the type of pydantic's error, if its own message is about Python."""


def _simplify(message: str) -> str:
    message = message.removeprefix("Value error, expected ").removeprefix("Input should be ")
    return f"a number {message}" if message.startswith(("greater than", "less than")) else message


def _locate(error: ErrorDetails, known: Collection[str]) -> tuple[str, str]:
    """Return the name of what is wrong, and of the setting that it is or is an item of.

    pydantic's place of an error may end in a name of its own, such as that of a union's member.
    """
    parts = [str(part) for part in error["loc"]]
    for count in range(1, len(parts) + 1):
        setting = ".".join(parts[:count])
        if setting in known:
            return (".".join(parts) if is_list(setting) or is_table(setting) else setting), setting
    name = ".".join(parts)
    return name, name


def _show_section(section: str, value: Any) -> str:
    """Return what a section sets, for a fault of several settings; of anything that is no setting, not the value."""
    if not isinstance(value, Mapping):
        return _NOT_SHOWN
    known = setting_names()
    prefix = f"{section}." if section else ""
    names = {key: prefix + str(key) for key in value}
    shown = [f"{key} = {show_value(names[key], value[key]) if names[key] in known else _NOT_SHOWN}" for key in value]
    return ", ".join(shown) or "none"


def show_value(setting: str, value: Any) -> str:
    """Return a setting's value as a message may show it."""
    if is_secret(setting):
        return _NOT_SHOWN
    if is_path(setting):
        return show_path(value)
    if isinstance(value, str) and "\n" in value:
        return _NOT_SHOWN
    text = _USER.sub("//[redacted]@", repr(value))
    text = _QUERY.sub(r"\1\2[redacted]\3", text)
    return text if len(text) <= _SHOWN_CHARS_MAX else text[:_SHOWN_CHARS_MAX] + "…"


_USER: Final = re.compile(r"//.*@", re.DOTALL)
_QUERY: Final = re.compile(r"(://[^?#]*)([?#]).*(['\"])", re.DOTALL)


def show_path(path: object) -> str:
    """Return a path as a message may show it; what does not look like one may be a secret in the wrong place."""
    return str(path) if _is_path_like(str(path)) else "(its name, which does not look like a path, is not shown)"


def _is_path_like(text: str) -> bool:
    return text.isprintable() and len(text) <= _SHOWN_CHARS_MAX and bool(_PATH_LIKE.search(text))


_PATH_LIKE: Final = re.compile(r"^\.{0,2}/|\.[A-Za-z0-9]{1,5}$")
