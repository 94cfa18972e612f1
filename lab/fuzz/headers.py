"""Metadata and headers across the policy: each that crosses is allowed, printable and in its place; no secret leaks.

The first byte of an input chooses the policy; the rest is entries separated by FE, each a name, FF and a value: two
bytes that UTF-8 never has. Names and values are decoded as grpc.aio decodes them.
"""

from collections.abc import Iterator, Sequence

from bridge.core.errors import BridgeError, Code
from bridge.core.headers import (
    METADATA_BYTES_MAX,
    METADATA_ENTRIES_MAX,
    RETURNED_BYTES_MAX,
    HeaderPolicy,
    find_request_id,
)
from ollmbridge.v1 import error_details_pb2 as details_pb2
from tests.kit import vectors

__all__ = ["check", "seeds"]

OWN_KEY = "sk-own-key-0123456789"
REQUEST_ID = "00000000-0000-4000-8000-000000000000"
PRODUCT = "ollm-bridge/0"
LEGAL = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_.-")
FORWARDED = {"authorization", "traceparent", "tracestate", "x-request-id", "user-agent"}
HOP = {
    "te",
    "host",
    "connection",
    "keep-alive",
    "upgrade",
    "trailer",
    "transfer-encoding",
    "expect",
    "cookie",
    "set-cookie",
}
REQUESTS = {"host", "expect", "cookie"}
"""Of HOP, what no response has: a setting that returns it all the same does no harm."""
NEVER = ("grpc-", "content-", "proxy-", "x-forwarded-")
HOSTILE = (
    ("x-request-id", "a\r\nx-admin: 1"),
    ("authorization", "Bearer sk-ollm-callers-key"),
    ("cookie", "session=1"),
    ("grpc-timeout", "1S"),
    ("user-agent", "product/1 grpc-python/1.83"),
    ("traceparent", "00-00000000000000000000000000000001-0000000000000001-01"),
    ("trace-bin", "\x00\x01"),
    ("x-team", "é"),
    ("X-Ratelimit-Limit", "1"),
)


def seeds() -> Iterator[bytes]:
    for number in range(8):
        yield bytes([number]) + pack(HOSTILE[number:] + HOSTILE[:number])
    for name in vectors.list_names("errors"):
        yield b"\4" + pack(vectors.read_answer("errors", name).headers)


def pack(entries: Sequence[tuple[str, str]]) -> bytes:
    return b"\xfe".join(name.encode() + b"\xff" + value.encode() for name, value in entries)


def check(data: bytes) -> None:
    if not data:
        return
    entries = [
        (decode(name), value) for name, _, value in (each.partition(b"\xff") for each in data[1:].split(b"\xfe"))
    ]
    own_key, named = bool(data[0] & 1), bool(data[0] & 2)
    configured = [name for name, _ in entries[:4]] if named else []
    policy = build_policy(own_key=own_key, forward=configured, return_headers=())
    if policy is not None:
        check_request(
            policy, [(name, value if name.endswith("-bin") else decode(value)) for name, value in entries], configured
        )
    policy = build_policy(own_key=own_key, forward=(), return_headers=configured)
    if policy is not None:
        check_response(policy, [(name, decode(value)) for name, value in entries], configured)


def decode(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")


def build_policy(*, own_key: bool, forward: Sequence[str], return_headers: Sequence[str]) -> HeaderPolicy | None:
    """Return a policy, or None if it rejects the configured names, one of which must then be illegal."""
    key = (lambda: OWN_KEY) if own_key else None
    try:
        policy = HeaderPolicy(product=PRODUCT, api_key=key, forward=forward, return_headers=return_headers)
    except ValueError:
        assert any(not is_legal(name) or is_never(name) for name in [*forward, *return_headers])
        return None
    assert all(is_legal(name) for name in [*forward, *return_headers])
    return policy


def is_legal(name: str) -> bool:
    return bool(name) and LEGAL.issuperset(name)


def is_never(name: str) -> bool:
    """Whether a header belongs to one hop, to gRPC or to a proxy."""
    others = name in {"forwarded", "accept-encoding", "user-agent"}
    return name in HOP or name.startswith(NEVER) or name.endswith("-bin") or others


def is_printable(value: str) -> bool:
    return all(" " <= letter <= "~" for letter in value)


def check_request(policy: HeaderPolicy, metadata: list[tuple[str, str | bytes]], configured: Sequence[str]) -> None:
    try:
        headers = policy.request_headers(metadata, request_id=find_request_id(metadata) or REQUEST_ID)
    except BridgeError as error:
        assert error.code is Code.INVALID_ARGUMENT
        assert error.reason == details_pb2.ERROR_REASON_INVALID_METADATA
        assert is_printable(error.message)
        return
    allowed = FORWARDED | set(configured)
    assert len(metadata) <= METADATA_ENTRIES_MAX
    sent = dict(headers)
    assert len(sent) == len(headers)
    assert {"x-request-id", "user-agent"} <= sent.keys() <= allowed
    assert all(is_legal(name) and (name == "user-agent" or not is_never(name)) for name in sent)
    assert all(is_printable(value) for value in sent.values())
    assert sum(len(name) + len(value) for name, value in headers) <= METADATA_BYTES_MAX + 512
    assert sent["user-agent"].endswith(PRODUCT)

    given = [value for name, value in metadata if name == "authorization" and value]
    if policy.own_key:
        assert sent["authorization"] == f"Bearer {OWN_KEY}"
    else:
        assert [sent["authorization"]] == given if given else "authorization" not in sent
    for secret in given:
        elsewhere = [value for name, value in metadata if name != "authorization" and secret in str(value)]
        if len(secret) > 8 and not elsewhere and secret not in {OWN_KEY, PRODUCT}:
            others = [part for name, value in headers if name != "authorization" for part in value.split(", ")]
            assert not any(secret in part for part in others)
    for name, value in metadata:
        if value and name in allowed - {"authorization", "user-agent", "x-request-id"}:
            assert str(value) in sent[name]
    ids = [value for name, value in metadata if name == "x-request-id" and value]
    assert sent["x-request-id"] == (ids or [REQUEST_ID])[0]


def check_response(policy: HeaderPolicy, headers: list[tuple[str, str]], configured: Sequence[str]) -> None:
    returned = policy.returned_metadata(headers)
    lower = {name.lower() for name, _ in headers}
    for name, value in returned:
        assert is_legal(name)
        assert is_printable(value)
        assert name not in HOP - REQUESTS
        assert not name.startswith(("grpc-", "content-", "proxy-"))
        assert not name.endswith("-bin")
        assert name in lower
        known = name in {"x-request-id", "retry-after", "openai-processing-ms"} or name.startswith("x-ratelimit-")
        assert known or name in configured or (name.startswith("x-") and name.endswith("-gateway-version"))
    assert sum(len(name) + len(value) + 32 for name, value in returned) <= RETURNED_BYTES_MAX
