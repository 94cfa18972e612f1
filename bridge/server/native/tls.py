"""What the engine asks of a TLS connection: that it speaks HTTP/2."""

import ssl
from typing import Final

__all__ = ["ALPN", "is_http2"]

ALPN: Final = "h2"


def is_http2(connection: ssl.SSLObject) -> bool:
    """Return whether the caller has agreed to HTTP/2 (RFC 9113, 3.2)."""
    return connection.selected_alpn_protocol() == ALPN
