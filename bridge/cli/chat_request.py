"""The request of `chat`, from its options: a prompt, or the text of standard input, and other keys of the API's JSON.

A value that is no JSON is a text, as in `-o reasoning_effort=low`. A key that the API does not have is sent as it is;
if it looks like one that the API has, the command says so.
"""

import argparse
import difflib
import io
import sys
from collections.abc import Iterator
from typing import Any, Final

import orjson

from bridge.cli.defaults import UsageError
from bridge.core.chat import decode_request_json
from bridge.core.dialect import OLLM_PREFIX
from bridge.core.json_text import JsonError, parse
from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionRequest
from ollmbridge.v1.ollm_options_pb2 import OllmOptions

__all__ = ["build_request", "list_hints", "read_request"]

_KNOWN: Final = (
    *(
        field.name
        for field in CreateChatCompletionRequest.DESCRIPTOR.fields
        if field.name not in {"ollm", "extra_json"}
    ),
    *(OLLM_PREFIX + field.name for field in OllmOptions.DESCRIPTOR.fields if field.name != "extra_json"),
)


def read_request(options: argparse.Namespace) -> CreateChatCompletionRequest:
    """Return the request that the options ask for. Raises UsageError."""
    system = [{"role": "system", "content": _repair(options.system)}] if options.system is not None else []
    messages = [*system, {"role": "user", "content": _repair(_read_prompt(options.prompt))}]
    items = dict(_read_items([_repair(option) for option in options.options]))
    return build_request({"model": _repair(options.model), "messages": messages, **items})


def build_request(document: dict[str, Any]) -> CreateChatCompletionRequest:
    """Return the request that a JSON object of the gateway's API stands for. Raises UsageError."""
    try:
        return decode_request_json(orjson.dumps(document))
    except ValueError as error:
        raise UsageError(f"the request is not JSON of this API: {error}") from None


def _read_prompt(prompt: str | None) -> str:
    if prompt in {None, "-"} and sys.stdin is None:
        raise UsageError("expected a prompt, found a closed standard input")
    if prompt is None and sys.stdin.isatty():
        raise UsageError("expected a prompt, or `-` to read one from standard input, found none")
    if prompt in {None, "-"}:
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")
        return sys.stdin.read().removesuffix("\n")
    return str(prompt)


def _read_items(options: list[str]) -> Iterator[tuple[str, Any]]:
    for option in options:
        key, equals, text = option.partition("=")
        if not (key and equals):
            raise UsageError(f"-o: expected KEY=VALUE, found {option!r}")
        yield key, _read_value(text)


def _read_value(text: str) -> Any:
    try:
        parse(text.encode())
    except JsonError:
        return text
    return orjson.Fragment(text)


def _repair(text: str) -> str:
    """Return a text that can be sent: bytes that the locale could not decode count as UTF-8, with U+FFFD for the rest.

    So `chat Grüße` says the same in an ASCII locale.
    """
    if text.isascii():
        return text
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:  # surrogates that stand for no byte
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def list_hints(options: list[str]) -> list[str]:
    """Return a line for each key of the options that looks like a misspelled one of the API."""
    keys = {option.partition("=")[0] for option in options} - {*_KNOWN}
    return [
        f"-o {key}: not a key of the API, sent as it is (did you mean {name}?)"
        for key in sorted(keys)
        for name in difflib.get_close_matches(key, _KNOWN, 1, 0.8)
    ]
