"""Connect: messages as protobuf or JSON, errors as JSON, over any HTTP (https://connectrpc.com/docs/protocol).

A unary call is a plain request with a plain answer, whose HTTP status says how the call ended and whose trailers are
headers with a prefix. A stream has gRPC's frames; its last one, with the flag 0x02, holds the error and the trailers.
"""

import base64
import json
import re
from collections.abc import Collection
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from google.rpc import status_pb2

from bridge.core.errors import Code
from bridge.core.headers import Metadata
from bridge.server.protocols import grpc
from bridge.server.protocols.framing import HEAD_BYTES, IDENTITY, MessageError, encode_frame, inflate
from bridge.server.protocols.grpc import Header
from bridge.server.protocols.grpc_web import read_one
from bridge.server.protocols.json_messages import decode_json, encode_json
from bridge.server.protocols.wire import Answer, Status, Types, drop_hop_headers

__all__ = ["ConnectStreamWire", "ConnectUnaryWire", "encode_error"]

_END: Final = 0x02
"""The flag of a stream's last frame."""
_VERSION: Final = b"1"
_TIMEOUT: Final = re.compile(rb"[0-9]{1,10}")
_DETAILS: Final = "grpc-status-details-bin"
_CODES: Final[dict[int, tuple[str, int]]] = {
    1: ("canceled", 499),
    2: ("unknown", 500),
    3: ("invalid_argument", 400),
    4: ("deadline_exceeded", 504),
    5: ("not_found", 404),
    6: ("already_exists", 409),
    7: ("permission_denied", 403),
    8: ("resource_exhausted", 429),
    9: ("failed_precondition", 400),
    10: ("aborted", 409),
    11: ("out_of_range", 400),
    12: ("unimplemented", 501),
    13: ("internal", 500),
    14: ("unavailable", 503),
    15: ("data_loss", 500),
    16: ("unauthenticated", 401),
}
"""Connect's name of each of gRPC's codes, and the HTTP status of a unary call that ends with it."""


class _ConnectWire:
    """What both forms of Connect have in common. `is_json`: messages are JSON, else protobuf."""

    has_http_trailers = False
    encoding_header: bytes
    accepted_header: str

    def __init__(self, types: Types, encodings: Collection[str], bytes_max: int, *, is_json: bool) -> None:
        self.metadata: Metadata = ()
        self.timeout_s: float | None = None
        self._types = types
        self._encodings = encodings
        self.encoding = IDENTITY
        self._bytes_max = bytes_max
        self._is_json = is_json

    @property
    def accepted(self) -> tuple[str, str]:
        """The header that says which compressions are accepted."""
        return self.accepted_header, ",".join(self._encodings) or IDENTITY

    def read_head(self, headers: list[Header]) -> None:
        """Read a request's headers. Raises MessageError."""
        others = []
        for name, value in headers:
            if name == b"connect-protocol-version" and value != _VERSION:
                version = value[:40].decode("latin-1")
                raise MessageError(Code.INVALID_ARGUMENT, f"expected 1 in connect-protocol-version, found {version!a}")
            if name == b"connect-timeout-ms":
                self.timeout_s = _parse_timeout(value)
            elif name == self.encoding_header:
                self.encoding = self._check_encoding(value.decode("latin-1"))
            elif not name.startswith((b"connect-", b"grpc-")):
                others.append((name, value))
        self.metadata = grpc.read_metadata(drop_hop_headers(others))

    def _check_encoding(self, encoding: str) -> str:
        encoding = encoding.lower()
        if encoding and encoding != IDENTITY and encoding not in self._encodings:
            raise MessageError(Code.UNIMPLEMENTED, f"the compression {encoding[:40]!a} is not accepted")
        return encoding or IDENTITY

    def _decode(self, message: bytes) -> bytes:
        return decode_json(message, self._types.request) if self._is_json else message

    def _encode(self, message: bytes) -> bytes:
        return encode_json(message, self._types.reply) if self._is_json else message


class ConnectUnaryWire(_ConnectWire):
    """A unary call."""

    encoding_header = b"content-encoding"
    accepted_header = "accept-encoding"

    @property
    def body_bytes_max(self) -> int:
        """The largest body of a request that can be one."""
        return self._bytes_max

    def read_body(self, body: bytes) -> bytes | None:
        """Return the message of a whole body. Raises MessageError and BridgeError."""
        if self.encoding != IDENTITY and body:
            body = inflate(body, self.encoding, self._bytes_max)
        return self._decode(body)

    def encode_start(self, metadata: Metadata) -> list[Header]:
        """Return the headers of an answer."""
        kind = b"application/json" if self._is_json else b"application/proto"
        return [(b"content-type", kind), *grpc.encode_metadata(metadata)]

    def encode_message(self, message: bytes) -> bytes:
        """Return the message as it is sent."""
        return self._encode(message)

    def encode_end(self, status: Status) -> tuple[bytes, list[Header]]:
        """Not for a unary call, which has no end of its own."""
        raise NotImplementedError

    def encode_answer(self, metadata: Metadata, message: bytes | None, status: Status) -> Answer:
        """Return the answer."""
        headers = self.encode_start(metadata)
        headers += [(b"trailer-" + name, value) for name, value in _encode_trailers(status)]
        if not status.code and message is not None:
            return Answer(200, headers, self._encode(message))
        headers[0] = (b"content-type", b"application/json")
        return Answer(_find_code(status.code)[1], headers, _dump(encode_error(status)))


class ConnectStreamWire(_ConnectWire):
    """A call with a stream of replies."""

    encoding_header = b"connect-content-encoding"
    accepted_header = "connect-accept-encoding"

    @property
    def body_bytes_max(self) -> int:
        """The largest body of a request that can be one."""
        return HEAD_BYTES + self._bytes_max

    def read_body(self, body: bytes) -> bytes | None:
        """Return the message of a whole body; None if it is cut. Raises MessageError and BridgeError."""
        message = read_one(body, self.encoding, self._bytes_max)
        return None if message is None else self._decode(message)

    def encode_start(self, metadata: Metadata) -> list[Header]:
        """Return the headers of a stream."""
        kind = b"application/connect+json" if self._is_json else b"application/connect+proto"
        return [(b"content-type", kind), *grpc.encode_metadata(metadata)]

    def encode_message(self, message: bytes) -> bytes:
        """Return a stream's message as it is sent."""
        return encode_frame(self._encode(message))

    def encode_end(self, status: Status) -> tuple[bytes, list[Header]]:
        """Return the frame that ends a stream."""
        end: dict[str, Any] = {}
        if status.code:
            end["error"] = encode_error(status)
        for name, value in _encode_trailers(status):
            end.setdefault("metadata", {}).setdefault(name.decode(), []).append(value.decode())
        return encode_frame(_dump(end), _END), []

    def encode_answer(self, metadata: Metadata, message: bytes | None, status: Status) -> Answer:
        """Return a stream at once."""
        body = self.encode_message(message) if message is not None and not status.code else b""
        return Answer(200, self.encode_start(metadata), body + self.encode_end(status)[0])


def encode_error(status: Status) -> dict[str, Any]:
    """Return the JSON of an error: its details are those of the status in the trailers, each also in words."""
    error: dict[str, Any] = {"code": _find_code(status.code)[0]}
    if status.message:
        error["message"] = status.message
    packed = next((value for name, value in status.trailers if name == _DETAILS), b"")
    details = status_pb2.Status.FromString(packed if isinstance(packed, bytes) else b"").details
    if details:
        error["details"] = [_encode_detail(each) for each in details]
    return error


def _encode_detail(detail: Any) -> dict[str, Any]:
    name = detail.type_url.rpartition("/")[2]
    encoded = {"type": name, "value": base64.b64encode(detail.value).rstrip(b"=").decode()}
    try:
        kind = GetMessageClass(status_pb2.Status.DESCRIPTOR.file.pool.FindMessageTypeByName(name))
        return encoded | {"debug": json_format.MessageToDict(kind.FromString(detail.value))}
    except (KeyError, DecodeError, TypeError):  # of a type that is not known here
        return encoded


def _find_code(code: int) -> tuple[str, int]:
    return _CODES.get(code, _CODES[2])


def _encode_trailers(status: Status) -> list[Header]:
    return grpc.encode_metadata([trailer for trailer in status.trailers if trailer[0] != _DETAILS])


def _parse_timeout(value: bytes) -> float:
    if _TIMEOUT.fullmatch(value) is None:
        raise MessageError(Code.INVALID_ARGUMENT, "the header connect-timeout-ms is no number of milliseconds")
    return int(value) / 1000


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
