"""A unary answer's body: a completion that says all that the JSON says, by an independent reader, or a BridgeError.

An input is the body.
"""

from collections.abc import Iterator
from typing import Any

import orjson
from google.protobuf.message import Message

from bridge.core.chat import decode_reply
from bridge.core.dialect import REPLY
from bridge.core.errors import BridgeError
from bridge.core.fields import Plan
from bridge.core.status import to_grpc_status
from tests.fuzz import reference
from tests.fuzz.mutate import json_within
from tests.unit.core import vectors
from tests.unit.core.documents import canonicalize, read_spelled, repair

__all__ = ["agree", "check", "mutate", "seeds"]

mutate = json_within


def seeds() -> Iterator[bytes]:
    for name in vectors.list_names("replies"):
        yield vectors.read_answer("replies", name).body
    for name in vectors.list_names("streams"):
        for _, data in reference.events(vectors.read_answer("streams", name).body):
            yield data
    yield b'{"choices":[],"id":7,"created":1e400,"usage":{"prompt_tokens":2147483648,"x":"\\ud83d"},"raw_usage":[1.10]}'


def check(data: bytes) -> None:
    try:
        reply = decode_reply(data)
    except BridgeError as error:
        to_grpc_status(error)
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


def agree(message: Message, plan: Plan, text: bytes) -> None:
    """Hold a message that was read from a JSON text against the text: written again it must be an equal document."""
    kept = type(message).FromString(message.SerializeToString())
    assert kept == message
    for each in kept.DESCRIPTOR.fields:
        if each.name.startswith("raw_"):  # a string there is given as its content, which is no JSON text
            kept.ClearField(each.name)
    body: Any = plan.write(kept, None, [])  # some keys, such as "", would be faults in a request
    before = canonicalize(repair(read_spelled(text)), message.DESCRIPTOR)
    assert canonicalize(read_spelled(orjson.dumps(body)), message.DESCRIPTOR) == before
