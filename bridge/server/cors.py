"""Which web sites' pages may call, by the Fetch standard's CORS protocol (https://fetch.spec.whatwg.org/#http-cors-protocol).

A browser says in `origin` which page a request comes from. If that origin is not in the list, the request is refused,
and no answer to it has a CORS header: so no page that somebody happens to visit can call a bridge on their loopback,
not even by DNS rebinding. Requests without `origin` come from no page.
"""

import re
from collections.abc import Collection, Iterable
from typing import Final

from bridge.server.protocols.grpc import Header

__all__ = ["Cors"]

_ANY: Final = "*"
_PREFLIGHT_S: Final = 7200
"""How long a browser may keep the answer to a preflight; Chrome's bound."""
_NAMES: Final = re.compile(rb"[0-9A-Za-z!#$%&'*+.^_`|~-]+(?:[ \t]*,[ \t]*[0-9A-Za-z!#$%&'*+.^_`|~-]+)*")
_ALWAYS_EXPOSED: Final = (b"grpc-status", b"grpc-message", b"grpc-status-details-bin", b"x-request-id")
_SAFE: Final = frozenset({b"content-type", b"content-length", b"cache-control"})
"""Headers that a page may read anyway."""


class Cors:
    """The rules. `origins` are those that may call, such as `https://app.example`; `*` is each."""

    def __init__(self, origins: Collection[str]) -> None:
        self._origins = frozenset(origins)

    def is_allowed(self, origin: bytes) -> bool:
        """Return whether the pages of an origin may call."""
        return _ANY in self._origins or origin.decode("latin-1") in self._origins

    def answer_preflight(self, origin: bytes, asked_headers: bytes) -> list[Header]:
        """Return the headers of the answer to an allowed origin's preflight: any header may be sent.

        Which of them cross is decided elsewhere (`core/headers.py`).
        """
        headers = [
            *self._allow(origin),
            (b"access-control-allow-methods", b"POST"),
            (b"access-control-max-age", b"%d" % _PREFLIGHT_S),
        ]
        if _NAMES.fullmatch(asked_headers):
            headers.append((b"access-control-allow-headers", asked_headers))
        return headers

    def expose(self, origin: bytes, sent: Iterable[Header]) -> list[Header]:
        """Return the headers that let an allowed origin's page read an answer, and every header that it has."""
        names = dict.fromkeys((*_ALWAYS_EXPOSED, *(name for name, _ in sent if name not in _SAFE)))
        return [*self._allow(origin), (b"access-control-expose-headers", b", ".join(names))]

    def _allow(self, origin: bytes) -> list[Header]:
        if _ANY in self._origins:
            return [(b"access-control-allow-origin", b"*")]
        return [(b"access-control-allow-origin", origin), (b"vary", b"origin")]
