"""From a field to its JSON value, by the field's kind.

A writer puts a field's value into the JSON object of its message and appends what is wrong with it, by its proto path.
JSON text of the caller's goes out byte for byte. Writers are closures, compiled once for each field.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import orjson
from google.protobuf.descriptor import FieldDescriptor

from bridge.core.errors import Violation
from bridge.core.fields import EXTRA, FieldPath, FieldWriter, GetPlan, Plan, is_json, is_map
from bridge.core.json_text import find_json_error

__all__ = ["build_fragment", "compile_writer", "write_extra"]


def compile_writer(get_plan: GetPlan, field: FieldDescriptor, key: str) -> FieldWriter:
    """Return the writer that puts a field's value at a key."""
    name = field.name
    if field.message_type is not None:
        if is_map(field):
            return _compile_map_writer(field.message_type.fields_by_name["value"], name, key)
        plan = get_plan(field.message_type)
        return _compile_items_writer(plan, name, key) if field.is_repeated else _compile_message_writer(plan, name, key)
    if is_json(field):
        return _compile_json_writer(name, key)
    if field.is_repeated:
        return _compile_list_writer(field, name, key)
    return (
        _compile_double_writer(name, key) if field.type == FieldDescriptor.TYPE_DOUBLE else _compile_scalar_writer(key)
    )


def _compile_scalar_writer(key: str) -> FieldWriter:
    def write(value: Any, out: dict[str, Any], _at: FieldPath | None, _violations: list[Violation]) -> None:
        out[key] = value

    return write


def _compile_double_writer(name: str, key: str) -> FieldWriter:
    def write(value: Any, out: dict[str, Any], at: FieldPath | None, violations: list[Violation]) -> None:
        _check_finite(value, FieldPath(at, name), violations)
        out[key] = value

    return write


def _compile_list_writer(field: FieldDescriptor, name: str, key: str) -> FieldWriter:
    is_double = field.type == FieldDescriptor.TYPE_DOUBLE

    def write(value: Any, out: dict[str, Any], at: FieldPath | None, violations: list[Violation]) -> None:
        for index, item in enumerate(value if is_double else ()):
            _check_finite(item, FieldPath(at, name, index), violations)
        out[key] = list(value)

    return write


def _compile_map_writer(values: FieldDescriptor, name: str, key: str) -> FieldWriter:
    is_double = values.type == FieldDescriptor.TYPE_DOUBLE

    def write(value: Any, out: dict[str, Any], at: FieldPath | None, violations: list[Violation]) -> None:
        for item_key, item in value.items() if is_double else ():
            _check_finite(item, _extend_path(at, name, item_key), violations)
        out[key] = dict(sorted(value.items()))

    return write


def _check_finite(value: float, at: FieldPath, violations: list[Violation]) -> None:
    if not math.isfinite(value):
        violations.append(Violation(str(at), f"expected a finite number, found {value}"))


def _compile_message_writer(plan: Plan, name: str, key: str) -> FieldWriter:
    def write(value: Any, out: dict[str, Any], at: FieldPath | None, violations: list[Violation]) -> None:
        out[key] = plan.write(value, FieldPath(at, name), violations)

    return write


def _compile_items_writer(plan: Plan, name: str, key: str) -> FieldWriter:
    def write(value: Any, out: dict[str, Any], at: FieldPath | None, violations: list[Violation]) -> None:
        out[key] = [plan.write(item, FieldPath(at, name, index), violations) for index, item in enumerate(value)]

    return write


def _compile_json_writer(name: str, key: str) -> FieldWriter:
    def write(value: Any, out: dict[str, Any], at: FieldPath | None, violations: list[Violation]) -> None:
        out[key] = build_fragment(value, FieldPath(at, name), violations)

    return write


def build_fragment(text: str, at: FieldPath, violations: list[Violation]) -> orjson.Fragment:
    """Return JSON text to be written as it is, byte for byte; other text is a violation."""
    if (problem := find_json_error(text)) is not None:
        violations.append(Violation(str(at), problem))
    return orjson.Fragment(text)


def write_extra(
    extra: Mapping[str, str],
    out: dict[str, Any],
    at: FieldPath | None,
    violations: list[Violation],
    *,
    prefix: str = "",
    reserved: tuple[str, ...] = (),
) -> None:
    """Put the JSON texts of an `extra_json` into the object of its level."""
    for key in sorted(extra):
        place = _extend_path(at, EXTRA, key)
        if not key:
            violations.append(Violation(str(place), "expected a key, found an empty one"))
        elif key in reserved:
            violations.append(
                Violation(str(place), f"expected a key of the caller's, found {key!r}: the bridge sets it")
            )
        elif prefix + key in out:
            violations.append(
                Violation(str(place), f"expected a key that no field sends, found {prefix + key!r}, set too")
            )
        out.setdefault(prefix + key, build_fragment(extra[key], place, violations))


def _extend_path(at: FieldPath | None, name: str, key: str) -> FieldPath:
    return FieldPath(at, f"{name}[{json.dumps(key, ensure_ascii=False)}]")
