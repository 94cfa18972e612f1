"""What the system's and OpenSSL's errors are in words, without the addresses and values that asyncio adds to them."""

import socket
import ssl
from os import strerror

__all__ = ["describe_cause"]


def describe_cause(error: BaseException) -> str:
    """Say why a connection failed."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verification failed: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and (reason := getattr(error, "reason", None)):
        return str(reason).lower().replace("_", " ")
    if isinstance(error, socket.gaierror):
        return str(error.strerror).lower()
    if isinstance(error, OSError) and error.errno:
        return strerror(error.errno).lower()
    return "connection reset" if isinstance(error, ConnectionError) else "network error"
