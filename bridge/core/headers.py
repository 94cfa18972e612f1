"""Which metadata becomes a header upstream, and which header comes back as metadata.

A list of names crosses, and nothing else; some never do, whatever the settings say, since they belong to one hop or are
a proxy's to set. Every value that crosses is printable ASCII, so that no header can be smuggled in another's value.
"""

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from bridge.core.errors import BridgeError, Code
from ollmbridge.v1 import error_details_pb2 as details_pb2

__all__ = ["METADATA_BYTES_MAX", "METADATA_ENTRIES_MAX", "HeaderPolicy", "Metadata"]

Metadata = Sequence[tuple[str, str | bytes]]
"""gRPC metadata: lower-case names; bytes only for names that end in `-bin`."""

METADATA_BYTES_MAX: Final = 8 * 1024
METADATA_ENTRIES_MAX: Final = 64
RETURNED_BYTES_MAX: Final = 4 * 1024
"""Of the upstream's headers, as initial metadata: gRPC clients drop a call whose metadata is above 8 KiB."""

_FORWARDED: Final = frozenset({"authorization", "traceparent", "tracestate", "x-request-id"})
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
    """What crosses. Made once; `request` and `response` are asked for each call.

    `api_key` gives the bridge's own key, each time anew since keys are renewed; with it, callers' `authorization` stays
    here. `product` is the bridge's token in the user agent. `forward` and `give_back` are further names, lower case.
    Raises ValueError for a name that can't be.
    """

    def __init__(
        self,
        *,
        product: str,
        api_key: Callable[[], str] | None = None,
        forward: Iterable[str] = (),
        give_back: Iterable[str] = (),
    ) -> None:
        self._product = product
        self._api_key = api_key
        self._forward = _FORWARDED | _allowed(forward, _NEVER, "forwarded")
        allowed = _allowed(give_back, _NEVER_RETURNED, "given back")
        # A gateway's answers have the same dozen of headers each time.
        self._returns = functools.lru_cache(256)(functools.partial(_returned_name, give_back=allowed))

    @property
    def own_key(self) -> bool:
        """Whether the key sent is the bridge's own."""
        return self._api_key is not None

    def request(self, metadata: Metadata, *, request_id: str) -> list[tuple[str, str]]:
        """Give the headers of the upstream's request. `request_id` is sent where the caller gave none.

        Raises BridgeError (INVALID_METADATA) for metadata too large or a value that can't become a header.
        """
        _check_size(metadata)
        headers: dict[str, str] = {}
        user_agent = ""
        for name, value in metadata:
            if name == "user-agent":
                user_agent = _printable(name, value)
            elif name in self._forward and value and not (name == "authorization" and self.own_key):
                if name == "authorization" and name in headers:
                    raise _invalid("expected one authorization, found several")
                text = _printable(name, value)
                headers[name] = f"{headers[name]}, {text}" if name in headers else text
        if self._api_key is not None:
            headers["authorization"] = f"Bearer {self._api_key()}"
        headers.setdefault("x-request-id", request_id)
        headers["user-agent"] = " ".join(filter(None, (_product(user_agent), self._product)))
        return list(headers.items())

    def response(self, headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """Give the metadata that the upstream's response headers become, within RETURNED_BYTES_MAX."""
        returned = []
        left = RETURNED_BYTES_MAX
        for raw_name, value in headers:
            name = self._returns(raw_name)
            if name is None or not _PRINTABLE.fullmatch(value):
                continue
            left -= len(name) + len(value) + 32
            if left < 0:
                break
            returned.append((name, value))
        return returned


def _returned_name(raw_name: str, give_back: frozenset[str]) -> str | None:
    """Give the metadata key that a header becomes, if it is one that does."""
    name = raw_name.lower()
    if not (_RETURNED.fullmatch(name) or name in give_back):
        return None
    return None if _NEVER_RETURNED.fullmatch(name) or not _NAME.fullmatch(name) else name


def _allowed(names: Iterable[str], never: re.Pattern[str], verb: str) -> frozenset[str]:
    allowed = frozenset(names)
    for name in sorted(allowed):
        if not _NAME.fullmatch(name) or never.fullmatch(name):
            raise ValueError(f"expected lower-case header names that may be {verb}, found {name!r}")
    return allowed


def _check_size(metadata: Metadata) -> None:
    if len(metadata) > METADATA_ENTRIES_MAX:
        raise _invalid(f"expected at most {METADATA_ENTRIES_MAX} entries of metadata, found {len(metadata)}")
    size = sum(len(name) + len(value) for name, value in metadata)
    if size > METADATA_BYTES_MAX:
        raise _invalid(f"expected at most {METADATA_BYTES_MAX} bytes of metadata, found {size}")


def _printable(name: str, value: str | bytes) -> str:
    if isinstance(value, bytes) or not _PRINTABLE.fullmatch(value):
        raise _invalid(f"expected printable ASCII in {name}, found other characters")
    return value


def _product(user_agent: str) -> str:
    """What stands before gRPC's own tokens is the caller's product; the gateway tags spend by it."""
    return f" {user_agent}".partition(" grpc-")[0].strip()


def _invalid(message: str) -> BridgeError:
    return BridgeError(Code.INVALID_ARGUMENT, details_pb2.ERROR_REASON_INVALID_METADATA, message)
