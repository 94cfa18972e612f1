"""What the protos can't say about the JSON: prefixes, unions, keys of several names. A table, and one form.

The gateway's own options stand in the request's object under `ollm::` names; OpenAI's unions are told by "type" or by
the kind of the JSON value; and the names of the raw provider data are settled by no source, so each likely one is read.
"""

from typing import Any, Final

from google.protobuf.message import Message

from bridge.core.codec import Aliased, At, Codec, Fault, Form, Rules, Source, spliced
from ollmbridge.v1 import chat_completion_service_pb2 as service_pb2
from ollmbridge.v1 import chat_pb2

__all__ = ["CHUNK", "OLLM_PREFIX", "REPLY", "REQUEST", "RULES"]

OLLM_PREFIX: Final = "ollm::"

_PACKAGE: Final = "ollmbridge.v1"
_RAW: Final = "raw_json"


def _raw_keys(name: str) -> Aliased:
    return Aliased((f"ollm_{name}", f"{OLLM_PREFIX}{name}", f"tensorzero_{name}", name))


class ToolChoiceForm:
    """`"none"`, `"auto"`, `"required"`; `{"type": "function", "function": {"name": …}}`; or any other shape as text."""

    def __init__(self) -> None:
        modes = chat_pb2.ToolChoice.Mode.items()
        self._words = {number: name.removeprefix("MODE_").lower() for name, number in modes if number}
        self._modes = {word: number for number, word in self._words.items()}

    def write(self, message: Message, at: At | None, faults: list[Fault]) -> Any:
        """Give the JSON value; no member, or a mode that is none, is a fault."""
        assert isinstance(message, chat_pb2.ToolChoice)  # noqa: S101 - the codec calls a type's own form
        match message.WhichOneof("choice"):
            case "mode":
                if message.mode not in self._words:
                    names = ", ".join(f"MODE_{word.upper()}" for word in self._modes)
                    faults.append(Fault(str(At(at, "mode")), f"expected one of {names}, found {message.mode}"))
                return self._words.get(message.mode)
            case "function_name":
                if not message.function_name:
                    faults.append(Fault(str(At(at, "function_name")), "expected a function's name, found an empty one"))
                return {"type": "function", "function": {"name": message.function_name}}
            case "raw_json":
                return spliced(message.raw_json, At(at, _RAW), faults)
            case _:
                faults.append(Fault(str(at), "expected one of mode, function_name, raw_json, found none"))
                return None

    def read(self, value: Any, source: Source, path: tuple[str | int, ...]) -> dict[str, Any]:
        """Give the keyword arguments; every value has some."""
        match value:
            case str() if value in self._modes:
                return {"mode": self._modes[value]}
            case {"type": "function", "function": {"name": str(name), **others}, **siblings} if not (
                others or siblings
            ):
                return {"function_name": name}
            case _:
                return {_RAW: source.cut(path)}


def _tool_choice(_codec: Codec) -> Form:
    return ToolChoiceForm()


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
        f"{_PACKAGE}.{message}.{name}_json": _raw_keys(name)
        for message, names in {
            "CreateChatCompletionResponse": ("raw_usage", "raw_response"),
            "StreamChatCompletionResponse": ("raw_usage", "raw_response", "raw_chunk"),
        }.items()
        for name in names
    },
    forms={f"{_PACKAGE}.ToolChoice": _tool_choice},
    reserved={f"{_PACKAGE}.CreateChatCompletionRequest": ("stream",)},  # which method is called decides streaming
)

_CODEC: Final = Codec(RULES)

REQUEST: Final = _CODEC.form(service_pb2.CreateChatCompletionRequest.DESCRIPTOR)
REPLY: Final = _CODEC.form(service_pb2.CreateChatCompletionResponse.DESCRIPTOR)
CHUNK: Final = _CODEC.form(service_pb2.StreamChatCompletionResponse.DESCRIPTOR)
