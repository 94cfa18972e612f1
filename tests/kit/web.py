"""A caller over HTTP: Connect and gRPC-Web as their documents have them, by httpx2. No code of the bridge's."""

import base64
import contextlib
import json
import ssl
import struct
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self
from urllib.parse import unquote

import httpx2
from google.protobuf import json_format
from google.protobuf.message import Message
from google.rpc import status_pb2

from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionResponse, StreamChatCompletionResponse
from tests.kit.statuses import unpack_details
from tests.kit.waiting import WAIT_S

__all__ = [
    "PROTOCOLS",
    "REPLIES",
    "SERVICE",
    "Web",
    "WebAnswer",
    "encode_frame",
    "encode_request",
    "get_content_type",
    "split_frames",
]

SERVICE: Final = "ollmbridge.v1.ChatCompletionService"
PROTOCOLS: Final = ("connect+json", "connect+proto", "grpc-web", "grpc-web-text")
REPLIES: Final = {False: CreateChatCompletionResponse, True: StreamChatCompletionResponse}
_NAMES: Final = (
    "canceled unknown invalid_argument deadline_exceeded not_found already_exists permission_denied resource_exhausted "
    "failed_precondition aborted out_of_range unimplemented internal unavailable data_loss unauthenticated"
)
_CODES: Final = {name: number for number, name in enumerate(_NAMES.split(), start=1)}


@dataclass
class WebAnswer:
    """All that came of a call. `code` is gRPC's number; `details` are by message name, as in a gRPC status."""

    http_status: int
    headers: Mapping[str, str]
    messages: list[Any] = field(default_factory=list)
    trailers: dict[str, str] = field(default_factory=dict)
    code: int = 0
    message: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    body: bytes = b""

    @property
    def reason(self) -> str:
        """The reason of a failure."""
        return self.details["ErrorInfo"].reason


def get_method(*, stream: bool) -> str:
    return "StreamChatCompletion" if stream else "CreateChatCompletion"


def get_content_type(protocol: str, *, stream: bool) -> str:
    """Return the content type of a request."""
    if protocol.startswith("grpc-web"):
        return f"application/{protocol}+proto"
    return f"application/{protocol if stream else protocol.removeprefix('connect+')}"


def encode_frame(data: bytes, flags: int = 0) -> bytes:
    return struct.pack(">BI", flags, len(data)) + data


def encode_request(request: Message, protocol: str, *, stream: bool) -> bytes:
    """Return the body of a request."""
    is_json = protocol.endswith("json")
    data = json_format.MessageToJson(request).encode() if is_json else request.SerializeToString()
    if protocol.startswith("connect") and not stream:
        return data
    frame = encode_frame(data)
    return base64.b64encode(frame) if protocol.endswith("text") else frame


def split_frames(body: bytes) -> list[tuple[int, bytes]]:
    """Return the frames of a body, each with its flags."""
    frames = []
    while body:
        flags, size = struct.unpack(">BI", body[:5])
        assert len(body) >= 5 + size, "a frame is cut"
        frames.append((flags, body[5 : 5 + size]))
        body = body[5 + size :]
    return frames


def decode_text(body: bytes) -> bytes:
    """Return the bytes of a body of base64, in which each part may be padded."""
    groups = [body[at : at + 4] for at in range(0, len(body), 4)]
    return b"".join(map(base64.b64decode, groups))


def decode(response: httpx2.Response, body: bytes, protocol: str, *, stream: bool) -> WebAnswer:
    """Return an answer that is whole."""
    answer = WebAnswer(response.status_code, dict(response.headers), body=body)
    if response.headers.get("content-type", "").startswith("text/plain"):
        return answer
    if protocol.startswith("grpc-web"):
        _decode_grpc_web(answer, decode_text(body) if protocol.endswith("text") else body, stream=stream)
    elif stream:
        _decode_connect_stream(answer, body, protocol)
    else:
        _decode_connect_unary(answer, body, protocol)
    return answer


def _decode_grpc_web(answer: WebAnswer, body: bytes, *, stream: bool) -> None:
    *messages, (flags, lines) = split_frames(body)
    assert flags == 0x80
    assert [flags for flags, _ in messages] == [0] * len(messages)
    answer.messages = [REPLIES[stream].FromString(data) for _, data in messages]
    answer.trailers = dict(line.split(": ", 1) for line in lines.decode().split("\r\n")[:-1])
    answer.code = int(answer.trailers.pop("grpc-status"))
    answer.message = unquote(answer.trailers.pop("grpc-message", ""))
    packed = answer.trailers.pop("grpc-status-details-bin", "")
    if packed:
        status = status_pb2.Status.FromString(base64.b64decode(packed + "=="))
        assert (status.code, status.message) == (answer.code, answer.message)
        answer.details = unpack_details(status)


def _decode_connect_unary(answer: WebAnswer, body: bytes, protocol: str) -> None:
    prefix = "trailer-"
    answer.trailers = {name.removeprefix(prefix): value for name, value in answer.headers.items() if prefix in name}
    if answer.http_status != 200:
        assert answer.headers["content-type"] == "application/json"
        _decode_connect_error(answer, json.loads(body))
    else:
        assert answer.headers["content-type"] == get_content_type(protocol, stream=False)
        answer.messages = [_decode_message(body, protocol, stream=False)]


def _decode_connect_stream(answer: WebAnswer, body: bytes, protocol: str) -> None:
    assert answer.headers["content-type"] == get_content_type(protocol, stream=True)
    *messages, (flags, text) = split_frames(body)
    assert flags == 2
    assert [flags for flags, _ in messages] == [0] * len(messages)
    answer.messages = [_decode_message(data, protocol, stream=True) for _, data in messages]
    end = json.loads(text)
    answer.trailers = {name: ", ".join(values) for name, values in end.get("metadata", {}).items()}
    if "error" in end:
        _decode_connect_error(answer, end["error"])


def _decode_connect_error(answer: WebAnswer, error: dict[str, Any]) -> None:
    answer.code = _CODES[error["code"]]
    answer.message = error.get("message", "")
    status = status_pb2.Status(code=answer.code)
    for detail in error.get("details", ()):
        value = base64.b64decode(detail["value"] + "=" * (-len(detail["value"]) % 4), validate=True)
        status.details.add(type_url=f"type.googleapis.com/{detail['type']}", value=value)
    answer.details = unpack_details(status)
    for detail in error.get("details", ()):  # the same in words
        found = answer.details[detail["type"].rpartition(".")[2]]
        assert detail["debug"] == json_format.MessageToDict(found)


def _decode_message(data: bytes, protocol: str, *, stream: bool) -> Any:
    if protocol.endswith("json"):
        return json_format.Parse(data, REPLIES[stream]())
    return REPLIES[stream].FromString(data)


class Web:
    """Calls of a bridge's web port."""

    def __init__(self, address: str, *, tls: ssl.SSLContext | None = None) -> None:
        scheme = "https" if tls else "http"
        self.url = f"{scheme}://{address}"
        self.client = httpx2.AsyncClient(verify=tls or False, trust_env=False, timeout=WAIT_S)

    async def __aenter__(self) -> Self:
        await self.client.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.client.__aexit__(*error)

    async def ask(
        self, request: Message, protocol: str = "connect+json", *, stream: bool = False, **headers: str
    ) -> WebAnswer:
        """Make a call and wait for its end. A header's name may have underscores for hyphens."""
        async with self.open(request, protocol, stream=stream, **headers) as response:
            return decode(response, await response.aread(), protocol, stream=stream)

    @contextlib.asynccontextmanager
    async def open(
        self, request: Message, protocol: str = "connect+json", *, stream: bool = False, **headers: str
    ) -> AsyncIterator[httpx2.Response]:
        """Make a call, and yield the response once its head has come; leaving the block disconnects."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        sent = {"content-type": get_content_type(protocol, stream=stream)} | sent
        body = encode_request(request, protocol, stream=stream)
        url = f"{self.url}/{SERVICE}/{get_method(stream=stream)}"
        async with self.client.stream("POST", url, content=body, headers=sent) as response:
            yield response
