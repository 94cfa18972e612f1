"""A unary answer's body: a completion with all that the JSON has, by an independent reader, or a BridgeError.

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
from lab.fuzz.mutate import change_json
from tests.kit import oracle, vectors
from tests.kit.documents import canonicalize, read_spelled, repair

__all__ = ["check", "check_agreement", "mutate", "seeds"]

mutate = change_json


def seeds() -> Iterator[bytes]:
    for name in vectors.list_names("replies"):
        yield vectors.read_answer("replies", name).body
    for name in vectors.list_names("streams"):
        for _, data in oracle.split_events(vectors.read_answer("streams", name).body):
            yield data
    for name in vectors.read_expected("cases"):
        yield vectors.read_fault(name).partition(b"\r\n\r\n")[2]
    yield (
        b'{"choices":[{"finish_reason":"stop"}],"id":7,"created":1e400'
        b',"usage":{"prompt_tokens":2147483648,"x":"\\ud83d"},"raw_usage":[1.10]}'
    )


def check(data: bytes) -> None:
    try:
        reply = decode_reply(data)
    except BridgeError as error:
        to_grpc_status(error)
        reply = None
    if oracle.measure_depth(data) > oracle.EQUAL_DEPTH_MAX:
        return
    try:
        value = oracle.parse_document(data.removeprefix(b"\xef\xbb\xbf"))
    except ValueError:
        value = None
    assert (reply is not None) == oracle.judge_reply(value)
    if reply is not None:
        check_agreement(reply, REPLY, data.removeprefix(b"\xef\xbb\xbf"))


def check_agreement(message: Message, plan: Plan, text: bytes) -> None:
    """Compare a message that was read from a JSON text with the text: written again it must be an equal document."""
    copy = type(message).FromString(message.SerializeToString())
    assert copy == message
    for each in copy.DESCRIPTOR.fields:
        if each.name.startswith("raw_"):  # a string there becomes its content, which is no JSON text
            copy.ClearField(each.name)
    body: Any = plan.write(copy, None, [])  # some keys, such as "", would be violations in a request
    before = canonicalize(repair(read_spelled(text)), message.DESCRIPTOR)
    assert canonicalize(read_spelled(orjson.dumps(body)), message.DESCRIPTOR) == before
