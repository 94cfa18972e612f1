"""Which metadata becomes a header upstream, and which header comes back as metadata.

A list of names crosses, and nothing else; some never do, whatever the settings say, since they belong to one hop or are
a proxy's to set. Every value that crosses is printable ASCII, so that no header can be smuggled in another's value.
"""

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeAlias

from bridge.core.errors import BridgeError, Code
from bridge.core.redact import redact
from ollmbridge.v1 import error_details_pb2 as details_pb2

__all__ = [
    "METADATA_BYTES_MAX",
    "METADATA_ENTRIES_MAX",
    "HeaderPolicy",
    "Metadata",
    "add_request_id",
    "find_first",
    "find_request_id",
]

Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]
"""gRPC metadata: lower-case names; bytes only for names that end in `-bin`."""

METADATA_BYTES_MAX: Final = 8 * 1024
METADATA_ENTRIES_MAX: Final = 64
RETURNED_BYTES_MAX: Final = 4 * 1024
"""Of the upstream's headers that come back: gRPC clients drop a call whose metadata is above 8 KiB."""

_REQUEST_ID: Final = "x-request-id"
_REQUEST_ID_BYTES_MAX: Final = 512
"""Of a caller's request id that comes back although the upstream did not return one."""
_FORWARDED: Final = frozenset({"authorization", "traceparent", "tracestate", "idempotency-key"})
_FIRST_COUNTS: Final = frozenset({"idempotency-key"})
"""Keys of which two values make no list: the first is sent."""
_SET_BY_BRIDGE: Final = frozenset({_REQUEST_ID, "accept"})
_NEVER: Final = re.compile(
    r"grpc-.*|.*-bin|te|host|content-.*|connection|keep-alive|proxy-.*|upgrade|trailer|transfer-encoding|expect"
    r"|cookie|x-forwarded-.*|forwarded|accept-encoding|user-agent"
)
_RETURNED: Final = re.compile(r"x-request-id|x-ratelimit-.*|retry-after|openai-processing-ms|x-.*-gateway-version")
_NEVER_RETURNED: Final = re.compile(
    r"grpc-.*|.*-bin|content-.*|connection|keep-alive|proxy-.*|upgrade|trailer|transfer-encoding|set-cookie|te"
)
_NAME: Final = re.compile(r"[0-9a-z_.-]+")
_PRINTABLE: Final = re.compile(r"[\x20-\x7e]*")


class HeaderPolicy:
    """What crosses. Built once; `request_headers` and `returned_metadata` are called for each call.

    `api_key` returns the bridge's own key, as it is now, since keys are renewed; with it, callers' `authorization` does
    not cross. `product` is the bridge's token in the user agent. `forward` and `return_headers` are further names, in
    lower case; `deadline_header` is one that the bridge sets itself. Raises ValueError for a name that may not cross.
    """

    def __init__(
        self,
        *,
        product: str,
        api_key: Callable[[], str] | None = None,
        forward: Iterable[str] = (),
        return_headers: Iterable[str] = (),
        deadline_header: str | None = None,
    ) -> None:
        self._product = product
        self._api_key = api_key
        self._own_keys: tuple[str, ...] = ()
        self._forward = _FORWARDED | _check_names(forward, _NEVER, "forwarded")
        if deadline_header is not None:
            _check_names([deadline_header], _NEVER, "set")
            if deadline_header in self._forward | _SET_BY_BRIDGE:
                raise ValueError(f"expected a header that nothing else sets, found {deadline_header!r}")
        returned = _check_names(return_headers, _NEVER_RETURNED, "returned")
        # A gateway's answers have the same dozen headers each time.
        self._find_key = functools.lru_cache(256)(functools.partial(_find_metadata_key, return_headers=returned))

    @property
    def own_key(self) -> bool:
        """Whether the key sent is the bridge's own."""
        return self._api_key is not None

    @property
    def own_keys(self) -> tuple[str, ...]:
        """The bridge's own key that was sent last and the one before it, which no text may have (`redact.py`)."""
        return self._own_keys

    def request_headers(self, metadata: Metadata, *, request_id: str) -> list[tuple[str, str]]:
        """Return the headers of the upstream's request. The call's `request_id` is sent, whatever the metadata has.

        Raises BridgeError (INVALID_METADATA) for metadata too large or a value that can't become a header.
        """
        if len(metadata) > METADATA_ENTRIES_MAX:
            raise _build_error(f"the metadata has {len(metadata)} entries, more than {METADATA_ENTRIES_MAX}")
        size = 0
        headers: dict[str, str] = {}
        user_agent = ""
        for name, value in metadata:
            size += len(name) + len(value)
            if name == "user-agent":
                user_agent = _check_value(name, value)
            elif name == _REQUEST_ID:
                _check_value(name, value)
            elif name in self._forward and value and not (name == "authorization" and self._api_key is not None):
                if name not in headers:
                    headers[name] = _check_value(name, value)
                elif name == "authorization":
                    raise _build_error("expected one authorization, found several")
                elif name in _FIRST_COUNTS:
                    _check_value(name, value)
                else:
                    headers[name] += f", {_check_value(name, value)}"
        if size > METADATA_BYTES_MAX:
            raise _build_error(f"the metadata has {size} bytes, more than {METADATA_BYTES_MAX}")
        if self._api_key is not None:
            headers["authorization"] = f"Bearer {self._read_own_key(self._api_key)}"
        headers[_REQUEST_ID] = request_id
        headers["user-agent"] = " ".join(filter(None, (_extract_product(user_agent), self._product)))
        return list(headers.items())

    def _read_own_key(self, read: Callable[[], str]) -> str:
        key = read()
        if key not in self._own_keys[:1]:
            self._own_keys = (key, *self._own_keys[:1])
        return key

    def returned_metadata(self, headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return the metadata that the upstream's response headers become, within RETURNED_BYTES_MAX."""
        returned: list[tuple[str, str]] = []
        has_request_id = False
        left = RETURNED_BYTES_MAX
        for name, value in headers:
            key = self._find_key(name)
            if key is None or not _PRINTABLE.fullmatch(value):
                continue
            if key == _REQUEST_ID:
                if has_request_id:
                    continue
                has_request_id = True
            left -= len(key) + len(value) + 32
            if left < 0:
                break
            returned.append((key, redact(value, self._own_keys)))
        return returned


def add_request_id(returned: list[tuple[str, str]], request_id: str) -> list[tuple[str, str]]:
    """Return the metadata that comes back to a caller, with the call's request id unless the upstream returned one."""
    if any(name == _REQUEST_ID for name, _ in returned) or not _is_returnable(request_id):
        return returned
    return [(_REQUEST_ID, request_id), *returned]


def _is_returnable(request_id: str) -> bool:
    return 0 < len(request_id) <= _REQUEST_ID_BYTES_MAX and _PRINTABLE.fullmatch(request_id) is not None


def find_request_id(metadata: Metadata) -> str:
    """Return the request id that a caller sent, the first if there are several, or "" if there is none."""
    return find_first(metadata, _REQUEST_ID)


def find_first(metadata: Metadata, key: str) -> str:
    """Return the first value of a key that is not empty, or ""."""
    return next((str(value) for name, value in metadata if name == key and value), "")


def _find_metadata_key(name: str, return_headers: frozenset[str]) -> str | None:
    """Return the metadata key that a response header becomes, or None if it does not cross."""
    key = name.lower()
    if not (_RETURNED.fullmatch(key) or key in return_headers):
        return None
    return None if _NEVER_RETURNED.fullmatch(key) or not _NAME.fullmatch(key) else key


def _check_names(names: Iterable[str], never: re.Pattern[str], verb: str) -> frozenset[str]:
    checked = frozenset(names)
    for name in sorted(checked):
        if not _NAME.fullmatch(name) or never.fullmatch(name):
            raise ValueError(f"expected lower-case header names that may be {verb}, found {name!r}")
    return checked


def _check_value(name: str, value: str | bytes) -> str:
    if isinstance(value, bytes) or not _PRINTABLE.fullmatch(value):
        raise _build_error(f"expected printable ASCII in {name}, found other characters")
    return value


def _extract_product(user_agent: str) -> str:
    """Return the caller's product, which stands before gRPC's own tokens; the gateway tags spend by it."""
    return f" {user_agent}".partition(" grpc-")[0].strip()


def _build_error(message: str) -> BridgeError:
    return BridgeError(Code.INVALID_ARGUMENT, details_pb2.ERROR_REASON_INVALID_METADATA, message)
