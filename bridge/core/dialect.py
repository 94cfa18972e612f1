"""What the protos can't say about the JSON: prefixes, unions, keys of several names. A table, and one plan.

The gateway's own options stand in the request's object under `ollm::` names; OpenAI's unions are distinguished by
"type" or by the kind of the JSON value; and the names of the raw provider data and of the cost are settled by no
source, so each likely one is read.
"""

from typing import Any, Final

from google.protobuf.message import Message

from bridge.core.codec import Codec, Rules
from bridge.core.errors import Violation
from bridge.core.field_writers import build_fragment, write_extra
from bridge.core.fields import EXTRA, FieldPath
from bridge.core.source import Path, Source
from ollmbridge.v1 import chat_completion_service_pb2 as service_pb2
from ollmbridge.v1 import chat_pb2

__all__ = ["CHUNK", "OLLM_PREFIX", "REPLY", "REQUEST", "RULES"]

OLLM_PREFIX: Final = "ollm::"

_PACKAGE: Final = "ollmbridge.v1"
_RAW: Final = "raw_json"


def _list_raw_keys(name: str) -> tuple[str, ...]:
    return (f"ollm_{name}", f"{OLLM_PREFIX}{name}", f"tensorzero_{name}", name)


class ToolChoicePlan:
    """`"none"`, `"auto"`, `"required"`; `{"type": "function", "function": {"name": …}}`; or any other shape as text."""

    def __init__(self) -> None:
        modes = chat_pb2.ToolChoice.Mode.items()
        self._words = {number: name.removeprefix("MODE_").lower() for name, number in modes if number}
        self._modes = {word: number for number, word in self._words.items()}

    def write(self, message: Message, at: FieldPath | None, violations: list[Violation]) -> Any:
        """Return the JSON value; no member, or a mode that is none, is a violation."""
        assert isinstance(message, chat_pb2.ToolChoice)  # noqa: S101 - the codec calls a type's own plan
        match message.WhichOneof("choice"):
            case "mode":
                _refuse_extra(message, "mode", at, violations)
                if message.mode not in self._words:
                    names = ", ".join(f"MODE_{word.upper()}" for word in self._modes)
                    description = f"expected one of {names}, found {message.mode}"
                    violations.append(Violation(str(FieldPath(at, "mode")), description))
                return self._words.get(message.mode)
            case "function_name":
                if not message.function_name:
                    description = "expected a function's name, found an empty one"
                    violations.append(Violation(str(FieldPath(at, "function_name")), description))
                out: dict[str, Any] = {"type": "function", "function": {"name": message.function_name}}
                write_extra(message.extra_json, out, at, violations)
                return out
            case "raw_json":
                _refuse_extra(message, _RAW, at, violations)
                return build_fragment(message.raw_json, FieldPath(at, _RAW), violations)
            case _:
                description = "expected one of mode, function_name, raw_json, found none"
                violations.append(Violation(str(at), description))
                return None

    def read(self, value: Any, source: Source, path: Path) -> dict[str, Any]:
        """Return the keyword arguments; every value has some."""
        match value:
            case str() if value in self._modes:
                return {"mode": self._modes[value]}
            case {"type": "function", "function": {"name": str(name), **others}, **siblings} if not others and (
                None not in siblings.values()
            ):
                return {"function_name": name, EXTRA: {str(key): source.cut((*path, str(key))) for key in siblings}}
            case _:
                return {_RAW: source.cut(path)}


def _refuse_extra(message: chat_pb2.ToolChoice, member: str, at: FieldPath | None, violations: list[Violation]) -> None:
    if message.extra_json:
        description = f"expected no extra_json beside {member}, which is the whole"
        violations.append(Violation(str(FieldPath(at, EXTRA)), description))


RULES: Final = Rules(
    tagged={
        f"{_PACKAGE}.ContentPart": _RAW,
        f"{_PACKAGE}.ResponseFormat": _RAW,
        f"{_PACKAGE}.Tool": _RAW,
    },
    untagged={f"{_PACKAGE}.ChatMessage.content": {str: "text", list: "parts", object: _RAW}},
    listed={f"{_PACKAGE}.ContentParts": "parts"},
    prefixed={f"{_PACKAGE}.OllmOptions": OLLM_PREFIX},
    aliased={
        f"{_PACKAGE}.{message}.{name}_json": _list_raw_keys(name)
        for message, names in {
            "CreateChatCompletionResponse": ("raw_usage", "raw_response"),
            "StreamChatCompletionResponse": ("raw_usage", "raw_response", "raw_chunk"),
        }.items()
        for name in names
    }
    | {f"{_PACKAGE}.Usage.cost": ("cost", "ollm_cost", "tensorzero_cost")},
    exact=frozenset({f"{_PACKAGE}.Usage.cost"}),
    plans={f"{_PACKAGE}.ToolChoice": ToolChoicePlan()},
    reserved={f"{_PACKAGE}.CreateChatCompletionRequest": ("stream",)},  # which method is called decides streaming
)

_CODEC: Final = Codec(RULES)

REQUEST: Final = _CODEC.get_plan(service_pb2.CreateChatCompletionRequest.DESCRIPTOR)
REPLY: Final = _CODEC.get_plan(service_pb2.CreateChatCompletionResponse.DESCRIPTOR)
CHUNK: Final = _CODEC.get_plan(service_pb2.StreamChatCompletionResponse.DESCRIPTOR)
