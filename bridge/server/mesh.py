"""Who calls, by what a mesh's proxy says: its header, if the call comes from the proxy itself.

In a mesh TLS ends in the proxy next to the bridge, so there is no certificate to read. The proxy has verified one, and
writes the name in it into a header: Envoy and Istio into x-forwarded-client-cert, Linkerd into l5d-client-id. Anybody
can write such a header, so it counts only if the settings say so, and only from the addresses that they trust. Whatever
is there beside one name in one header is refused: a second one would be the caller's own.
"""

import ipaddress
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final
from urllib.parse import unquote

from bridge.core.errors import BridgeError, Code
from bridge.core.headers import Metadata
from bridge.settings import MeshSettings
from ollmbridge.v1 import error_details_pb2 as details_pb2

__all__ = ["MeshIdentity", "create_mesh_identity"]

_PAIR: Final = r'([A-Za-z]+)=("(?:[^"\\]|\\.)*"|[^",;]*)'
_ELEMENT: Final = re.compile(rf"{_PAIR}(?:;{_PAIR})*")
"""Of x-forwarded-client-cert: a certificate's pairs. A comma outside of quotes begins another certificate."""
_SPIFFE: Final = re.compile(r"spiffe://[A-Za-z0-9._/-]+")
_DNS: Final = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")


class MeshIdentity:
    """Finds the identity that a mesh's proxy has verified."""

    def __init__(self, header: str, settings: MeshSettings) -> None:
        self._header = header
        self._parse = _PARSERS[header]
        self._allowed = frozenset(settings.allowed_identities)
        self._networks = [ipaddress.ip_network(each) for each in settings.proxies]
        self._is_proxy = lru_cache(1024)(self._find_network)

    def find(self, metadata: Metadata, peer: str) -> str:
        """Return the caller's identity. Raises BridgeError if there is none, or if it may not call."""
        if not self._is_proxy(peer.rpartition(":")[0]):
            raise _unauthenticated("this bridge takes calls from its mesh's proxy alone (mesh.proxies)")
        values = [value for name, value in metadata if name == self._header]
        if not values:
            raise _unauthenticated(f"the mesh's proxy does not say who calls ({self._header}): call through the mesh")
        identity = self._parse(str(values[0])) if len(values) == 1 else None
        if identity is None:
            raise _unauthenticated(f"{self._header} does not name exactly one caller")
        if self._allowed and identity not in self._allowed:
            message = f"the identity {identity} from the mesh is not in the bridge's list (mesh.allowed_identities)"
            raise BridgeError(Code.PERMISSION_DENIED, details_pb2.ERROR_REASON_CALLER_DENIED, message)
        return identity

    def _find_network(self, address: str) -> bool:
        """Return whether an address as gRPC writes it, without its port, is a proxy's."""
        family, _, host = unquote(address).partition(":")
        if family not in {"ipv4", "ipv6"}:
            return False
        try:
            found = ipaddress.ip_address(host.strip("[]"))
        except ValueError:
            return False
        mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
        return any((mapped or found) in network for network in self._networks)


def create_mesh_identity(settings: MeshSettings) -> MeshIdentity | None:
    """Return what finds callers' identities, or None if the settings trust no header."""
    return None if settings.identity_header is None else MeshIdentity(settings.identity_header, settings)


def _parse_forwarded_certificate(value: str) -> str | None:
    """Return the SPIFFE id of the one certificate in Envoy's header."""
    if not _ELEMENT.fullmatch(value):
        return None
    uris = [text.strip('"') for name, text in re.findall(_PAIR, value) if name.lower() == "uri"]
    return uris[0] if len(uris) == 1 and _SPIFFE.fullmatch(uris[0]) else None


def _parse_client_id(value: str) -> str | None:
    """Return the name in Linkerd's header."""
    return value if _DNS.fullmatch(value) else None


_PARSERS: Final[dict[str, Callable[[str], str | None]]] = {
    "x-forwarded-client-cert": _parse_forwarded_certificate,
    "l5d-client-id": _parse_client_id,
}


def _unauthenticated(message: str) -> BridgeError:
    return BridgeError(Code.UNAUTHENTICATED, details_pb2.ERROR_REASON_CALLER_UNAUTHENTICATED, message)
