"""A unary answer's body: a completion that says all that the JSON says, by an independent reader, or a BridgeError.

An input is the body.
"""

from collections.abc import Iterator
from typing import Any

import orjson
from google.protobuf.message import Message

from bridge.core.chat import decode
from bridge.core.codec import Form
from bridge.core.dialect import REPLY
from bridge.core.errors import BridgeError, rendered
from tests.core import vectors
from tests.core.documents import canonical, repaired, unspelled
from tests.fuzz import reference
from tests.fuzz.mutate import json_within

__all__ = ["agree", "check", "mutate", "seeds"]

mutate = json_within


def seeds() -> Iterator[bytes]:
    for name in vectors.names("replies"):
        yield vectors.answer("replies", name).body
    for name in vectors.names("streams"):
        for _, data in reference.events(vectors.answer("streams", name).body):
            yield data
    yield b'{"choices":[],"id":7,"created":1e400,"usage":{"prompt_tokens":2147483648,"x":"\\ud83d"},"raw_usage":[1.10]}'


def check(data: bytes) -> None:
    try:
        reply = decode(data)
    except BridgeError as error:
        rendered(error)
        reply = None
    if reference.depth(data) > reference.EQUAL_DEPTH_MAX:
        return
    try:
        value = reference.document(data.removeprefix(b"\xef\xbb\xbf"))
    except ValueError:
        value = None
    good = isinstance(value, dict) and not value.get("error") and value.get("choices") is not None
    assert (reply is not None) == good
    if reply is not None:
        agree(reply, REPLY, data.removeprefix(b"\xef\xbb\xbf"))


def agree(message: Message, form: Form, text: bytes) -> None:
    """Hold a message that was read from a JSON text against the text: written again it must be an equal document."""
    kept = type(message).FromString(message.SerializeToString())
    assert kept == message
    for each in kept.DESCRIPTOR.fields:
        if each.name.startswith("raw_"):  # a string there is given as its content, which is no JSON text
            kept.ClearField(each.name)
    body: Any = form.write(kept, None, [])  # some keys, such as "", would be faults in a request
    before = canonical(repaired(unspelled(text)), message.DESCRIPTOR)
    assert canonical(unspelled(orjson.dumps(body)), message.DESCRIPTOR) == before
