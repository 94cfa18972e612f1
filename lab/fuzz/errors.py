"""An upstream's answer of any kind: a status that is legal, never OK, within its size, whole and without a key.

The first two bytes of an input choose the HTTP status and whose key is used; then come Retry-After, FF,
retry-after-ms, FF, the content type, FF and the body. In the body, `@K` stands for a key of each form in turn, `@O` for
the bridge's own key, and `@P` for padding that pushes the rest towards the limits.
"""

from collections.abc import Iterator

from google.rpc import error_details_pb2 as rpc_pb2

from bridge.core.errors import Asked, BridgeError, Code, Resource
from bridge.core.http_errors import RETRY_MS_MAX, error_from_response, parse_retry_after
from bridge.core.status import MESSAGE_BYTES_MAX, TRAILER_BYTES_MAX, GrpcStatus, to_grpc_status
from lab.fuzz.mutate import change_json
from ollmbridge.v1 import error_details_pb2 as details_pb2
from tests.kit import vectors
from tests.kit.statuses import count_sent_bytes, read_details

__all__ = ["check", "mutate", "seeds"]

mutate = change_json

NOW_S = 1795400000.0
SECRET = b"5ecre7t0ken5ecre7t0ken"
KEYS = (
    *(b" sk-ollm-" + SECRET, b" Bearer " + SECRET, b" https://user:" + SECRET + b"@gateway.example/ "),
    *(b" AIza" + SECRET, b" gsk_" + SECRET, b" hf_" + SECRET, b" api_key=" + SECRET, b" x-api-key: " + SECRET),
    *(b" eyJhbGciOi." + SECRET, b" /v1?key=" + SECRET + b"&a=b"),
)
OWN_KEY = "0wn/k3y+of=the-bridge"
PADDING = 2000
STATUSES = (200, 201, 204, 301, 400, 401, 402, 403, 404, 405, 408, 409, 410, 413, 418, 422, 425, 429, 431, 451, 499)
STATUSES += (500, 501, 502, 503, 504, 520, 524, 529, 530, 599, 100, 999)
REQUEST_ID = "00000000-0000-4000-8000-000000000000"
OWN = (("ollmbridge-upstream-ms", "1.0"),)


def seeds() -> Iterator[bytes]:
    for name in vectors.list_names("errors"):
        answer = vectors.read_answer("errors", name)
        status = STATUSES.index(answer.status) if answer.status in STATUSES else 0
        headers = {key.lower(): value for key, value in answer.headers}
        fields = (headers.get("retry-after", ""), headers.get("retry-after-ms", ""), answer.content_type)
        yield bytes([status, len(name)]) + b"\xff".join([*map(str.encode, fields), answer.body])
    for number, name in enumerate(vectors.read_expected("cases")):
        yield (
            bytes([number, number])
            + b"\xff\xff"
            + b"application/json\xff"
            + vectors.read_fault(name).partition(b"\r\n\r\n")[2]
        )
    for number, text in enumerate(
        (
            b'"@K"',
            b'{"error":{"message":"@P@P@P@P@P@P@P@P@K","code":"@K","x":["@K"]}}',
            b'[{"error":{"message":["@O@K"],"x":"@O"}}]',
        )
    ):
        yield bytes([20 + number, number]) + b"Fri, 31 Dec 9999 23:59:59 -2359\xff1e3\xfftext/plain\xff" + text


def check(data: bytes) -> None:
    if len(data) < 2:
        return
    http_status, own_key = STATUSES[data[0] % len(STATUSES)], bool(data[1] & 1)
    after, after_ms, kind, body = (*data[2:].split(b"\xff", 3), b"", b"", b"")[:4]
    headers = [("Retry-After", after.decode("latin-1"))] * bool(after)
    headers += [("retry-after-ms", after_ms.decode("latin-1"))] * bool(after_ms)
    wait_ms = parse_retry_after(headers, now_s=NOW_S)
    assert wait_ms is None or 0 <= wait_ms <= RETRY_MS_MAX
    has_secret = SECRET in body or OWN_KEY.encode() in body
    body = expand(body)
    error = error_from_response(
        http_status,
        body,
        content_type=kind.decode("latin-1"),
        asked=Asked(Resource("model", "near_qwen3_30b"), own_key=own_key),
        retry_after_ms=wait_ms,
    )
    limits = [("x-ratelimit-limit-requests", "1" * (data[1] * 8))] * 3
    status = to_grpc_status(error, request_id=REQUEST_ID, trailers=OWN, forwarded=limits, secrets=(OWN_KEY,))
    check_status(status, error, wait_ms)
    assert has_secret or (SECRET not in join_plain_texts(status) and OWN_KEY.encode() not in join_plain_texts(status))
    if own_key and error.upstream is not None and error.upstream.http_status in {401, 403}:
        assert error.reason == details_pb2.ERROR_REASON_CREDENTIALS_REJECTED


def expand(body: bytes) -> bytes:
    first, *others = body.split(b"@K")
    for number, rest in enumerate(others):
        first += KEYS[number % len(KEYS)] + rest
    return first.replace(b"@O", OWN_KEY.encode()).replace(b"@P", b"x" * PADDING)


def check_status(status: GrpcStatus, error: BridgeError, wait_ms: int | None) -> None:
    assert isinstance(status.code, Code)
    assert status.code is error.code
    assert status.code.value not in {0, Code.CANCELLED}
    assert len(status.message.encode()) <= MESSAGE_BYTES_MAX
    assert count_sent_bytes(*status) <= TRAILER_BYTES_MAX
    trailers = dict(status.trailers)
    for name, value in status.trailers:
        assert name == name.lower()
        assert name.isascii()
        assert isinstance(value, bytes) if name.endswith("-bin") else all(" " <= letter <= "~" for letter in value)
    assert status.trailers[: len(OWN)] == OWN

    details = read_details(status)
    info = details["ErrorInfo"]
    assert isinstance(info, rpc_pb2.ErrorInfo)
    assert details_pb2.ErrorReason.Value(f"ERROR_REASON_{info.reason}") == error.reason
    assert isinstance(details["UpstreamError"], details_pb2.UpstreamError)
    assert wait_ms is None or error.retry_after_ms == wait_ms  # else the body may have one
    assert ("RetryInfo" in details) == (error.retry_after_ms is not None)
    is_retryable = status.code in {Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED}
    assert ("grpc-retry-pushback-ms" in trailers) == (error.retry_after_ms is not None and is_retryable)
    if isinstance(retry := details.get("RetryInfo"), rpc_pb2.RetryInfo):
        assert retry.retry_delay.ToMilliseconds() == error.retry_after_ms


def join_plain_texts(status: GrpcStatus) -> bytes:
    return b"\n".join(
        [status.message.encode(), *(v if isinstance(v, bytes) else v.encode() for _, v in status.trailers)]
    )
