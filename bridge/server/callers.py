"""Who calls, and whether they may: by certificate, by token, or not told at all.

With no tokens and no list of identities everybody may call, and what a caller sends as `authorization` is for the
upstream to judge. With a tokens file, a caller must send `authorization: Bearer TOKEN` with one of its tokens; that
token is never sent on, so the bridge must have a key of its own for the upstream.
"""

import contextlib
import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from bridge.core.errors import BridgeError, Code
from bridge.core.headers import Metadata
from bridge.reload import WatchedFile
from bridge.settings import Settings, SettingsError, TagSettings
from ollmbridge.v1 import error_details_pb2 as details_pb2

__all__ = ["Caller", "Callers", "tags_of"]

_SPIFFE: Final = "peer_spiffe_id"
_IDENTITIES: Final = (_SPIFFE, "x509_subject_alternative_name", "x509_common_name")
"""Where grpc says what a caller's certificate says, the strongest first."""
_TAG_CHARS_MAX: Final = 256


@dataclass(frozen=True)
class Caller:
    """A caller. `name` is who they are, "" where nothing says so; `bucket` tells callers apart, and holds no key."""

    name: str
    bucket: str


class Callers:
    """What tells callers, by the settings. Raises SettingsError where a file can't be used."""

    def __init__(self, settings: Settings) -> None:
        self._allowed = frozenset(settings.tls.allowed_identities)
        self._tokens: WatchedFile | None = None
        if settings.tokens_file is not None:
            if settings.upstream.api_key is None and settings.upstream.api_key_file is None:
                raise SettingsError("tokens_file: expected upstream.api_key or upstream.api_key_file beside it")
            self._tokens = WatchedFile(settings.tokens_file, name="tokens_file", secret=True)
            self._content = self._tokens.read()
            self._table = _token_table(self._content)

    def identify(self, metadata: Metadata, certificate: Mapping[str, Iterable[bytes]], peer: str) -> Caller:
        """Give the caller. `certificate` is grpc's auth_context. Raises BridgeError where they may not call."""
        identities = [text.decode("utf-8", "replace") for key in _IDENTITIES for text in certificate.get(key, ())]
        if self._allowed and not self._allowed.intersection(identities):
            found = identities[0] if identities else "none"
            message = f"expected a certificate of a caller on the list, found {found}"
            raise BridgeError(Code.PERMISSION_DENIED, details_pb2.ERROR_REASON_CALLER_DENIED, message)
        authorization = next((value for name, value in metadata if name == "authorization"), "")
        name = self._token_name(self._tokens, str(authorization)) if self._tokens is not None else ""
        name = next(iter(self._allowed.intersection(identities)), "") or (identities[0] if identities else name)
        if name:
            return Caller(name, f"name {name}")
        if authorization:
            return Caller("", f"key {hashlib.sha256(str(authorization).encode()).hexdigest()[:16]}")
        return Caller("", f"peer {peer.rpartition(':')[0]}")

    def _token_name(self, tokens: WatchedFile, authorization: str) -> str:
        """Give the name of the token sent. Every token is compared, each in constant time."""
        content = tokens.read()
        if content is not self._content:
            self._content = content
            with contextlib.suppress(SettingsError):  # half written: the old tokens still are some
                self._table = _token_table(content)
        scheme, _, token = authorization.partition(" ")
        sent = hashlib.sha256(token.strip().encode()).digest()
        names = [name for digest, name in self._table if hmac.compare_digest(digest, sent)]
        if scheme.lower() == "bearer" and names:
            return names[0]
        found = "another value" if authorization else "none"
        message = f"expected a token of this bridge as `authorization: Bearer TOKEN`, found {found}"
        raise BridgeError(Code.UNAUTHENTICATED, details_pb2.ERROR_REASON_CALLER_UNAUTHENTICATED, message)


def tags_of(settings: TagSettings, metadata: Metadata, caller: Caller) -> dict[str, str]:
    """Give the tags that the bridge adds to a caller's call: fixed ones, of metadata, and who calls."""
    tags = dict(settings.fixed)
    if settings.metadata:
        given = {name: value for name, value in metadata if isinstance(value, str)}
        tags |= {tag: given[key][:_TAG_CHARS_MAX] for tag, key in settings.metadata.items() if given.get(key)}
    if settings.identity is not None and caller.name:
        tags[settings.identity] = caller.name
    return tags


def _token_table(content: bytes) -> list[tuple[bytes, str]]:
    """Give (SHA-256 of the token, name) a line. Raises SettingsError, without the line."""
    table = []
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2:
            raise SettingsError(f"tokens_file: expected NAME TOKEN in line {number}, found {len(words)} words")
        table.append((hashlib.sha256(words[1].encode()).digest(), words[0]))
    if not table:
        raise SettingsError("tokens_file: expected at least one line of NAME TOKEN, found none")
    return table
