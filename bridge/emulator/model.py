"""What the model says: to the same request, always the same.

It repeats what the user said, reports what a tool returned, calls a tool that is offered, or fills in a JSON schema;
and it obeys `stop` and the limits. A word is a token.
"""

import itertools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from bridge.emulator.requests import list_chosen_names
from bridge.emulator.steps import JsonObject, format_json

__all__ = ["Answer", "answer"]

SCHEMA_DEPTH_MAX = 32


class Answer(NamedTuple):
    """Words of a text, each with the space before it, or tool calls."""

    words: list[str]
    tool_calls: list[JsonObject]
    finish_reason: str
    usage: dict[str, int]


def answer(body: JsonObject) -> Answer:
    """Return the answer to a body that is in order."""
    messages = body["messages"]
    calls = _call_tools(body) if messages[-1]["role"] == "user" else []
    if calls:
        words, finish = [call["function"]["arguments"] for call in calls], "tool_calls"
    else:
        words, finish = _limit_words(_write_text(body), body)
    prompt = sum(len(_join_text(message.get("content")).split()) for message in messages)
    usage = {"prompt_tokens": prompt, "completion_tokens": len(words), "total_tokens": prompt + len(words)}
    return Answer([] if calls else words, calls, finish, usage)


def _write_text(body: JsonObject) -> str:
    form = body.get("response_format") or {"type": "text"}
    if form["type"] == "json_schema":
        return format_json(_fill_schema(form["json_schema"].get("schema")))
    messages = body["messages"]
    results = itertools.takewhile(lambda message: message["role"] == "tool", reversed(messages))
    joined = ", ".join(_join_text(message.get("content")) for message in reversed(list(results)))
    if joined:
        text = f"The tool said: {joined}"
    else:
        last = next((message["content"] for message in reversed(messages) if message["role"] == "user"), "")
        text = f"You said: {_join_text(last)}"
    return format_json({"text": text}) if form["type"] == "json_object" else text


def _join_text(content: Any) -> str:
    if isinstance(content, list):
        return " ".join(
            part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)
        )
    return content if isinstance(content, str) else "" if content is None else format_json(content)


def _limit_words(text: str, body: JsonObject) -> tuple[list[str], str]:
    """Return the words before the first stop sequence and within the limits, and the finish reason."""
    ends = [end for stop in body.get("stop") or [] if stop and (end := text.find(stop)) >= 0]
    words = re.findall(r"\s*\S+|\s+$", text[: min(ends, default=len(text))])
    limits = [body[name] for name in ("max_tokens", "max_completion_tokens") if body.get(name) is not None]
    if len(words) > min(limits, default=len(words)):
        return words[: min(limits)], "length"
    return words, "stop"


def _call_tools(body: JsonObject) -> list[JsonObject]:
    choice = body.get("tool_choice") or "auto"
    tools = [] if choice == "none" else body.get("tools") or []
    mode = choice
    if isinstance(choice, dict):
        names = list_chosen_names(choice)
        tools = [tool for tool in tools if tool[tool["type"]]["name"] in names]
        mode = choice.get("allowed_tools", {}).get("mode", "")
    if not (mode == "required" and body.get("parallel_tool_calls")):
        tools = tools[:1]
    first = 1 + sum(len(message.get("tool_calls") or []) for message in body["messages"])
    return [_call_tool(tool, number) for number, tool in enumerate(tools, first)]


def _call_tool(tool: JsonObject, number: int) -> JsonObject:
    """Return a call of a tool; that of a custom tool is a function call too."""
    kind = tool["type"]
    arguments = format_json(_fill_schema(tool[kind]["parameters"])) if kind == "function" else "Paris"
    function = {"name": tool[kind]["name"], "arguments": arguments}
    return {"id": f"call_{number}", "type": "function", "function": function}


_PLACES = ("location", "city")
_SIMPLE: Mapping[str, Any] = {"string": "text", "integer": 0, "number": 0, "boolean": False, "null": None, "array": []}


def _fill_schema(schema: Any, name: str = "", depth: int = 0) -> Any:
    """Return a small value that a schema allows, for the simple ones among schemas."""
    if not isinstance(schema, dict) or depth > SCHEMA_DEPTH_MAX:
        return {}
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    for key in ("enum", "anyOf", "oneOf", "allOf"):
        if isinstance(schema.get(key), list) and schema[key]:
            return schema[key][0] if key == "enum" else _fill_schema(schema[key][0], name, depth + 1)
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0] if kind else None
    if kind == "string" and name in _PLACES:
        return "Paris"
    if kind in ("integer", "number") and isinstance(schema.get("minimum"), int | float):
        return schema["minimum"]
    if isinstance(kind, str) and kind in _SIMPLE:
        return _SIMPLE[kind]
    properties, required = schema.get("properties"), schema.get("required")
    return {
        key: _fill_schema(inner, key, depth + 1)
        for key, inner in (properties.items() if isinstance(properties, dict) else ())
        if key in _PLACES or (isinstance(required, list) and key in required)
    }
