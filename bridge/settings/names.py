"""The dotted names of settings, and of which kind each is."""

from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from bridge.settings.model import Settings

__all__ = ["is_list", "is_path", "is_secret", "is_table", "setting_names"]


def setting_names(model: type[BaseModel] = Settings, prefix: str = "") -> list[str]:
    """Return every setting's dotted name."""
    names = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names += setting_names(field.annotation, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def is_list(name: str) -> bool:
    """Whether a setting, by its dotted name, is a list."""
    return get_origin(_find_field(name).annotation) is tuple


def is_table(name: str) -> bool:
    """Whether a setting, by its dotted name, is a table of texts."""
    return get_origin(_find_field(name).annotation) is dict


def is_secret(name: str) -> bool:
    """Whether a setting's value must not be shown, by its dotted name."""
    field = _find_field(name)
    return not field.repr or SecretStr in (field.annotation, *get_args(field.annotation))


def is_path(name: str) -> bool:
    """Whether a setting, by its dotted name, is the path of a file."""
    return Path in get_args(_find_field(name).annotation)


def _find_field(name: str) -> FieldInfo:
    model: Any = Settings
    *sections, key = name.split(".")
    for section in sections:
        model = model.model_fields[section].annotation
    field: FieldInfo = model.model_fields[key]
    return field
