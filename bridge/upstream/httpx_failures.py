"""What httpx2 raises, as the failures of `exchange.py`.

Before the request goes out every failure is a ConnectError. After it, httpx2 tells an answer that is not HTTP from a
connection that ended by words alone. Those words quote the answer, so they go no further than the log's traceback.
"""

import socket
import ssl
from os import strerror
from typing import Final

import httpx2

from bridge.upstream.exchange import (
    ConnectError,
    ConnectionLostError,
    EngineError,
    InvalidAnswerError,
    ReadTimeoutError,
)

__all__ = ["to_engine_error"]

_ENDS: Final = ("Server disconnected", "peer closed", "peer unexpectedly closed", "<StreamReset", "<ConnectionTerm")
"""How the texts of a RemoteProtocolError begin if the connection or the stream ended, and nothing was wrong with it."""
_AFTER_GOAWAY: Final = "in state ConnectionState.CLOSED"
"""h2's words for what comes after a GOAWAY."""


def to_engine_error(error: Exception, *, is_sent: bool, limit_s: float) -> EngineError:
    """Return what an exchange failed of; `limit_s` is the time that it had."""
    if not is_sent:
        return ConnectError(_describe_connect(error, limit_s))
    if isinstance(error, TimeoutError):
        return ReadTimeoutError(f"nothing came for {limit_s:g} s")
    if isinstance(error, httpx2.ProtocolError) and str(error).endswith(_AFTER_GOAWAY):
        return ConnectionLostError("the gateway announced its end (GOAWAY) within the answer")
    if isinstance(error, httpx2.ProtocolError) and not str(error).startswith(_ENDS):
        return InvalidAnswerError("httpx2 can't parse it")
    if isinstance(error, httpx2.TransportError | OSError):
        return ConnectionLostError("it ended before the answer did")
    return InvalidAnswerError("httpx2 can't parse it")  # h2's errors are not always httpx2's


def _describe_connect(error: Exception, timeout_s: float) -> str:
    """Return why there is no connection in the system's words, which httpx2 leaves out of its own."""
    if isinstance(error, TimeoutError):
        return f"no connection within {timeout_s:g} s (upstream.connect_timeout_s)"
    if isinstance(error, httpx2.ProxyError):
        return "the proxy refused the tunnel"
    if isinstance(error, httpx2.ProtocolError):
        return "the proxy's answer is not HTTP"
    cause: BaseException | None = error
    while cause is not None:
        match cause:
            case ssl.SSLCertVerificationError():
                return f"certificate verification failed: {cause.verify_message}"
            case ssl.SSLError() if cause.reason:
                return f"TLS: {cause.reason.lower().replace('_', ' ')}"
            case socket.gaierror():
                return str(cause.strerror).lower()
            case OSError() if cause.errno:
                return strerror(cause.errno).lower()
            case BaseExceptionGroup():
                cause = cause.exceptions[0]
            case _:
                cause = cause.__cause__ or cause.__context__
    return "the connection ended at once"
