"""Who a caller is, and whether they may call: by certificate, by a mesh, by token, or without any.

A certificate identifies by its SPIFFE id, else by its DNS names (`certificate.py`); a mesh by what its proxy says
(`mesh.py`); a token by its name in the file.
Only such a verified identity, or else the caller's address, is what limits of one caller count by: anything that a
caller may write as it likes would be a new caller each time.

Without tokens and without a list of identities everybody may call, and the upstream judges the `authorization` that a
caller sends. With a tokens file, a caller must send `authorization: Bearer TOKEN` with one of its tokens. That token is
never forwarded, so the bridge must have an API key of its own.
"""

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from functools import lru_cache
from typing import Final
from urllib.parse import unquote

from bridge.core.errors import BridgeError, Code
from bridge.core.headers import Metadata
from bridge.reload import ExpiredFileError, Reloaded
from bridge.server.certificate import CertificateError, list_identities
from bridge.server.mesh import create_mesh_identity
from bridge.server.peer import CERTIFICATE
from bridge.server.rpc import Caller, Certificate
from bridge.settings import Settings, SettingsError, TagSettings
from ollmbridge.v1 import error_details_pb2 as details_pb2

__all__ = ["Callers", "collect_tags", "find_address", "find_certificate_name", "identity_tags"]

_IPV6_BUCKET_BITS: Final = 64
"""What one caller has of IPv6: any number of addresses with the same first half."""
_TAG_CHARS_MAX: Final = 256
_TOKENS: Final = "tokens_file"


_Tokens = list[tuple[bytes, str]]
"""The SHA-256 of each token, and its name."""


class Callers:
    """Identifies callers by certificate, mesh or token. Raises SettingsError if a file can't be used."""

    def __init__(self, settings: Settings) -> None:
        self._allowed = frozenset(settings.tls.allowed_identities)
        self._mesh = create_mesh_identity(settings.mesh)
        self._tokens: Reloaded[_Tokens] | None = None
        if settings.tokens_file is not None:
            if settings.upstream.api_key is None and settings.upstream.api_key_file is None:
                raise SettingsError("tokens_file: expected upstream.api_key or upstream.api_key_file beside it")
            self._tokens = Reloaded(
                {_TOKENS: settings.tokens_file},
                _parse_tokens,
                secret={_TOKENS},
                lines={_TOKENS},
                grace_s=settings.reload_grace_s,
            )
            if not self._tokens.value:
                raise SettingsError(f"{_TOKENS}: expected at least one line of NAME TOKEN, found none")

    def identify(self, metadata: Metadata, certificate: Certificate, peer: str) -> Caller:
        """Return the caller. Raises BridgeError if they may not call."""
        from_mesh = self._mesh.find(metadata, peer) if self._mesh is not None else ""
        identities = _read_identities(certificate)
        allowed = [identity for identity in identities if identity in self._allowed]
        if self._allowed and not allowed:
            own = f"identity {identities[0]} of the caller's certificate" if identities else "caller's certificate"
            raise _denied(f"the {own} is not in the bridge's list (tls.allowed_identities)")
        token_name = self._find_token(metadata)
        name = next(iter((*allowed, *identities)), from_mesh or token_name)
        return Caller(name, f"name {name}") if name else Caller("", find_address(peer))

    def _find_token(self, metadata: Metadata) -> str:
        if self._tokens is None:
            return ""
        # The first of several values counts.
        authorization = next((str(value) for name, value in metadata if name == "authorization"), "")
        try:
            return _find_token(self._tokens.value, authorization)
        except ExpiredFileError as error:
            message = f"this bridge can't check tokens: {error}"
            raise BridgeError(Code.UNAUTHENTICATED, details_pb2.ERROR_REASON_CALLER_UNAUTHENTICATED, message) from error


def find_certificate_name(certificate: Certificate) -> str:
    """Return the name in a caller's certificate, whether they may call or not; "" if it identifies nobody."""
    try:
        return next(iter(_read_identities(certificate)), "")
    except BridgeError:
        return ""


def _read_identities(certificate: Certificate) -> tuple[str, ...]:
    try:
        return tuple(name for pem in certificate.get(CERTIFICATE, ()) for name in list_identities(pem))
    except CertificateError as error:
        raise _denied(f"the caller's certificate identifies nobody: {error}") from None


def _denied(message: str) -> BridgeError:
    return BridgeError(Code.PERMISSION_DENIED, details_pb2.ERROR_REASON_CALLER_DENIED, message)


def find_address(peer: str) -> str:
    """Return what tells callers without a name apart: their address, which they can't choose at will."""
    address = peer.rpartition(":")[0]
    return f"peer {_find_network(address) if address.startswith('ipv6:') else address}"


@lru_cache(1024)
def _find_network(address: str) -> str:
    """Return an IPv6 caller's network. grpc writes the brackets as %5B and %5D."""
    host = unquote(address).removeprefix("ipv6:").strip("[]").partition("%")[0]
    try:
        return str(ipaddress.ip_network((host, _IPV6_BUCKET_BITS), strict=False))
    except ValueError:
        return address


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
    return tokens  # none at all, later than at the start, is a table too: every token was revoked


def collect_tags(settings: TagSettings, metadata: Mapping[str, str | bytes]) -> Mapping[str, str]:
    """Return the tags that the bridge adds to a call if its caller has not set them: fixed ones, and from metadata."""
    if not settings.metadata:
        return settings.fixed
    texts = {name: value for name, value in metadata.items() if isinstance(value, str)}
    found = {tag: texts[key][:_TAG_CHARS_MAX] for tag, key in settings.metadata.items() if texts.get(key)}
    return {**settings.fixed, **found}


def identity_tags(settings: TagSettings, caller: Caller) -> Mapping[str, str]:
    """Return the tag of the caller's identity, which no tag of the caller's own replaces."""
    return {settings.identity: caller.name} if settings.identity is not None and caller.name else {}
