"""Who a caller is, and whether they may call: by certificate, by token, or without either.

Without tokens and without a list of identities everybody may call, and the upstream judges the `authorization` that a
caller sends. With a tokens file, a caller must send `authorization: Bearer TOKEN` with one of its tokens. That token is
never forwarded, so the bridge must have an API key of its own.
"""

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from bridge.core.errors import BridgeError, Code
from bridge.reload import Reloaded
from bridge.settings import Settings, SettingsError, TagSettings
from ollmbridge.v1 import error_details_pb2 as details_pb2

__all__ = ["Caller", "Callers", "collect_tags"]

_SPIFFE: Final = "peer_spiffe_id"
_IDENTITIES: Final = (_SPIFFE, "x509_subject_alternative_name", "x509_common_name")
"""The names in grpc's auth_context that identify a caller's certificate, the strongest first."""
_TAG_CHARS_MAX: Final = 256
_TOKENS: Final = "tokens_file"


@dataclass(frozen=True)
class Caller:
    """A caller. `name` is "" if nothing identifies them; `bucket` tells callers apart, and holds no key."""

    name: str
    bucket: str


_ANYBODY: Final = Caller("", "")

_Tokens = list[tuple[bytes, str]]
"""The SHA-256 of each token, and its name."""


class Callers:
    """Identifies callers by certificate or token. Raises SettingsError if a file can't be used."""

    def __init__(self, settings: Settings) -> None:
        self._allowed = frozenset(settings.tls.allowed_identities)
        self._needs_buckets = settings.calls_per_caller_max is not None
        self._tokens: Reloaded[_Tokens] | None = None
        if settings.tokens_file is not None:
            if settings.upstream.api_key is None and settings.upstream.api_key_file is None:
                raise SettingsError("tokens_file: expected upstream.api_key or upstream.api_key_file beside it")
            self._tokens = Reloaded({_TOKENS: settings.tokens_file}, _parse_tokens, secret={_TOKENS})

    def identify(
        self, metadata: Mapping[str, str | bytes], certificate: Mapping[str, Iterable[bytes]], peer: str
    ) -> Caller:
        """Return the caller. `certificate` is grpc's auth_context. Raises BridgeError if they may not call."""
        identities = [text.decode("utf-8", "replace") for key in _IDENTITIES for text in certificate.get(key, ())]
        if self._allowed and not self._allowed.intersection(identities):
            own = f"identity {identities[0]} of the caller's certificate" if identities else "caller's certificate"
            message = f"the {own} is not in the bridge's list (tls.allowed_identities)"
            raise BridgeError(Code.PERMISSION_DENIED, details_pb2.ERROR_REASON_CALLER_DENIED, message)
        authorization = str(metadata.get("authorization", ""))
        name = _find_token(self._tokens.value, authorization) if self._tokens is not None else ""
        name = next(iter(self._allowed.intersection(identities)), "") or (identities[0] if identities else name)
        if name:
            return Caller(name, f"name {name}")
        if not self._needs_buckets:
            return _ANYBODY
        if authorization:
            return Caller("", f"key {hashlib.sha256(authorization.encode()).hexdigest()[:16]}")
        return Caller("", f"peer {peer.rpartition(':')[0]}")


def _find_token(tokens: _Tokens, authorization: str) -> str:
    """Return the name of the token in `authorization`. Every token is compared, each in constant time."""
    scheme, _, token = authorization.partition(" ")
    sent = hashlib.sha256(token.strip().encode()).digest()
    names = [name for digest, name in tokens if hmac.compare_digest(digest, sent)]
    if scheme.lower() == "bearer" and names:
        return names[0]
    message = (
        "the token in the authorization metadata is unknown to this bridge"
        if authorization
        else "this bridge requires a token in the authorization metadata, and there is none"
    )
    raise BridgeError(Code.UNAUTHENTICATED, details_pb2.ERROR_REASON_CALLER_UNAUTHENTICATED, message)


def _parse_tokens(content: bytes) -> _Tokens:
    """Parse the lines of a tokens file. Raises SettingsError, without the line."""
    tokens = []
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2:
            raise SettingsError(f"{_TOKENS}: expected NAME TOKEN in line {number}, found {len(words)} words")
        tokens.append((hashlib.sha256(words[1].encode()).digest(), words[0]))
    if not tokens:
        raise SettingsError(f"{_TOKENS}: expected at least one line of NAME TOKEN, found none")
    return tokens


def collect_tags(settings: TagSettings, metadata: Mapping[str, str | bytes], caller: Caller) -> dict[str, str]:
    """Return the tags that the bridge adds to a call: fixed ones, from metadata, and the caller's name."""
    tags = dict(settings.fixed)
    if settings.metadata:
        texts = {name: value for name, value in metadata.items() if isinstance(value, str)}
        tags |= {tag: texts[key][:_TAG_CHARS_MAX] for tag, key in settings.metadata.items() if texts.get(key)}
    if settings.identity is not None and caller.name:
        tags[settings.identity] = caller.name
    return tags
