"""JSON documents for the property tests: values that remember how they are spelled, and what is equal to what.

`objects` of a message type hit its keys with fitting and misfitting values, at all levels, among keys of no field.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import strategies as st

from ollmbridge.v1 import chat_completion_service_pb2 as service_pb2

PREFIX = "ollm::"
COST_KEYS = {"cost", "ollm_cost", "tensorzero_cost"}
RAW_KEYS = {
    f"{prefix}{name}"
    for prefix in ("ollm_", PREFIX, "tensorzero_", "")
    for name in ("raw_usage", "raw_response", "raw_chunk")
}


class Number(str):
    """A number as it is spelled."""

    __slots__ = ()


def spell(value: Any) -> str:
    """Return the JSON text of a value in which numbers are Number; the same value has the same text."""
    match value:
        case Number():
            return str(value)
        case dict():
            return "{" + ", ".join(f"{json.dumps(key)}: {spell(item)}" for key, item in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(spell, value)) + "]"
        case _:
            return json.dumps(value)


def repair(value: Any) -> Any:
    """Return the value with U+FFFD for each lone surrogate; two that make a pair are a character."""
    match value:
        case Number():
            return value
        case str():
            return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        case dict():
            return {repair(key): repair(item) for key, item in value.items()}
        case list():
            return [repair(item) for item in value]
        case _:
            return value


def read_spelled(text: str | bytes) -> Any:
    """Return a document in which numbers are Number."""
    return json.loads(text, parse_int=Number, parse_float=Number)


# Equality


def canonicalize(value: Any, descriptor: Descriptor | None) -> Any:
    """Return a document in the form in which all of its equals are the same.

    Nulls are absent; a field without presence is there with its default; an empty list or map of a message is absent; a
    double is its value. Which of its keys the raw data stands under is another test's business.
    """
    match value:
        case Number():
            return "-0" if value == "-0" else str(value)
        case list():
            return [canonicalize(item, descriptor) for item in value]
        case dict():
            kept = {key: item for key, item in value.items() if item is not None}
            if descriptor is None:
                return {key: canonicalize(item, None) for key, item in kept.items()}
            return _canonicalize_object(kept, descriptor)
        case _:
            return value


def _canonicalize_object(value: dict[str, Any], descriptor: Descriptor) -> dict[str, Any]:
    out: dict[str, Any] = {}
    keys = dict(_keys(descriptor))
    for key, item in value.items():
        each = keys.get(key)
        if (key in RAW_KEYS and "choices" in keys) or (key in COST_KEYS and descriptor.name == "Usage"):
            continue
        if each is None:
            out[key] = canonicalize(item, None)
        elif each.is_repeated and not _is_union_member(each) and item == ({} if _is_map(each) else []):
            continue
        elif isinstance(item, Number) and each.type == FieldDescriptor.TYPE_DOUBLE and math.isfinite(float(item)):
            out[key] = float(item)
        elif _is_map(each) and isinstance(item, dict) and all(map(_is_double, item.values())):
            out[key] = {name: float(value) for name, value in item.items()}
        elif each.cpp_type in _INTEGERS:
            out[key] = _canonicalize_integers(item)
        elif each.message_type is None or _is_map(each):
            out[key] = canonicalize(item, None)
        else:
            out[key] = canonicalize(item, each.message_type)
    for key, each in keys.items():
        if key not in out and not each.has_presence and not each.is_repeated:
            out[key] = str(each.default_value) if each.cpp_type in _INTEGERS else each.default_value
    return out


def _canonicalize_integers(value: Any) -> Any:
    if isinstance(value, list):
        return [_canonicalize_integers(item) for item in value]
    return "0" if isinstance(value, Number) and value == "-0" else canonicalize(value, None)


def _is_double(value: Any) -> bool:
    return isinstance(value, Number) and math.isfinite(float(value))


def _is_union_member(each: FieldDescriptor) -> bool:
    """Whether a list is one of the forms of a value, so that an empty one is not the same as none."""
    return each.containing_type.name == "ContentParts"


def _is_map(each: FieldDescriptor) -> bool:
    return each.message_type is not None and each.message_type.GetOptions().map_entry


_INTEGERS = {FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64}


def _keys(descriptor: Descriptor) -> Iterator[tuple[str, FieldDescriptor]]:
    """Yield the JSON keys of a message, by the contract.

    A union is one key, `ollm` is a prefix, and `_json` is not in a key.
    """
    if descriptor.name in {"ContentPart", "Tool", "ResponseFormat", "ToolChoice", "ContentParts"}:
        if descriptor.name in {"ContentPart", "Tool", "ResponseFormat"}:
            yield from ((each.name, each) for each in descriptor.fields if each.name not in {"raw_json", "extra_json"})
        return
    for each in descriptor.fields:
        if each.name == "extra_json":
            continue
        if each.containing_oneof is not None and each.containing_oneof.name == "content":
            if each.name == "parts":
                yield "content", each.message_type.fields_by_name["parts"]
        elif each.name == "ollm":
            yield from ((PREFIX + key, inner) for key, inner in _keys(each.message_type))
        else:
            yield each.name.removesuffix("_json"), each


# Strategies


def _nest(depth: int) -> Any:
    value: Any = Number("1.10")
    for level in range(depth):
        value = [value] if level % 2 else {"d": value}
    return value


SURROGATES = st.sampled_from(["\ud83d", "\ude00", "\ud800x", "a\udfff", "\ud83d\ude00"])
TEXTS = st.one_of(
    st.text(max_size=6), SURROGATES, st.sampled_from(["", "text", "function", "a\u2028b", "\\ud83d", '"', "\x00", "😀"])
)
NUMBERS = st.one_of(
    st.integers(min_value=-3, max_value=3).map(str).map(Number),
    st.sampled_from(
        [
            *("-0", "-0.0", "0.0", "1.10", "1e400", "-1e400", "1E+2", "1e-400", "40.0", "0.1e1"),
            *("2147483647", "2147483648", "-2147483649", "9223372036854775807", "9223372036854775808"),
            *("18446744073709551616", "123456789012345678901234567890", "0.12345678901234567890123"),
        ]
    ).map(Number),
    st.floats(allow_nan=False, allow_infinity=False).map(repr).map(Number),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
ODD_KEYS = st.sampled_from(
    [
        *(
            "",
            "extra_json",
            "ollm",
            "stream",
            "type",
            "ollm::x",
            "ollm::",
            "a.b",
            "raw_json",
            "text",
            "parts",
            "\ud83d",
        ),
        *("usage_json", "extra_json.a", "choices", "message", "id", "0", "[DONE]", "ключ", "index", "error", "mode"),
    ]
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(ODD_KEYS, st.text(max_size=3)), inner, max_size=3)
    ),
    max_leaves=5,
)
DEEP = st.integers(min_value=2, max_value=200).map(_nest)


def objects(descriptor: Descriptor, depth: int = 0) -> st.SearchStrategy[dict[str, Any]]:
    """Return JSON objects for a message type: its keys, mostly with fitting values, and others."""
    known = st.fixed_dictionaries({}, optional={key: _values(each, depth) for key, each in _all_keys(descriptor)})
    others = st.dictionaries(ODD_KEYS, st.one_of(ANYTHING, DEEP), max_size=2)
    return st.tuples(known, others, st.randoms(use_true_random=False)).map(lambda made: _merge(*made))


def _merge(known: dict[str, Any], others: dict[str, Any], random: Any) -> dict[str, Any]:
    pairs = [*known.items(), *((key, item) for key, item in others.items() if key not in known)]
    random.shuffle(pairs)
    return dict(pairs)


def _all_keys(descriptor: Descriptor) -> Iterator[tuple[str, FieldDescriptor | None]]:
    for key, each in _keys(descriptor):
        if key == "content":
            continue
        yield from ((name, each) for name in _aliases(key)) if key.startswith("raw_") else [(key, each)]
    if descriptor.name == "ChatMessage":
        yield "content", None


def _aliases(key: str) -> list[str]:
    return [f"ollm_{key}", f"tensorzero_{key}", key]


def _values(each: FieldDescriptor | None, depth: int) -> st.SearchStrategy[Any]:
    fitting = _content(depth) if each is None else _fitting(each, depth)
    return st.one_of(fitting, fitting, fitting, fitting, SCALARS, ANYTHING)


def _content(depth: int) -> st.SearchStrategy[Any]:
    part = service_pb2.CreateChatCompletionRequest.DESCRIPTOR.fields_by_name["messages"].message_type
    item = part.fields_by_name["parts"].message_type.fields_by_name["parts"].message_type
    return st.one_of(TEXTS, st.lists(tagged_values(item, depth + 1), max_size=3), ANYTHING)


def tagged_values(descriptor: Descriptor, depth: int) -> st.SearchStrategy[Any]:
    """Return values of a union that "type" distinguishes, and some that nearly are."""
    members = [each for each in descriptor.fields if each.name not in {"raw_json", "extra_json"}]
    known = [
        st.fixed_dictionaries(
            {"type": st.just(each.name)}, optional={each.name: _values(each, depth), "cache_control": ANYTHING}
        )
        for each in members
    ]
    return st.one_of(*known, st.fixed_dictionaries({"type": TEXTS}, optional={"custom": ANYTHING}), ANYTHING)


TOOL_CHOICES = st.one_of(
    st.sampled_from(["none", "auto", "required", "unspecified", "MODE_AUTO"]),
    st.fixed_dictionaries({"type": st.just("function"), "function": st.fixed_dictionaries({"name": TEXTS})}),
    ANYTHING,
)


def _fitting(each: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if _is_map(each):
        kind = each.message_type.fields_by_name["value"].type
        return st.dictionaries(st.text(max_size=3), _SCALARS_OF[kind](), max_size=3)
    one = _one(each, depth)
    return st.lists(one, max_size=2) if each.is_repeated else one


def _one(each: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if each.message_type is None:
        return ANYTHING if each.name.endswith("_json") else _SCALARS_OF[each.type]()
    name = each.message_type.name
    if depth > 4:
        return st.just({})
    if name in {"ContentPart", "Tool", "ResponseFormat"}:
        return tagged_values(each.message_type, depth + 1)
    return TOOL_CHOICES if name == "ToolChoice" else objects(each.message_type, depth + 1)


_SCALARS_OF: Mapping[int, Callable[[], st.SearchStrategy[Any]]] = {
    FieldDescriptor.TYPE_STRING: lambda: TEXTS,
    FieldDescriptor.TYPE_BOOL: st.booleans,
    FieldDescriptor.TYPE_DOUBLE: lambda: NUMBERS,
    FieldDescriptor.TYPE_INT32: lambda: NUMBERS,
    FieldDescriptor.TYPE_INT64: lambda: NUMBERS,
}
