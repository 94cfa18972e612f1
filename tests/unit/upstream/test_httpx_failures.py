"""What the httpx engine's failures say: the cause in the system's words, and nothing of what the upstream sent."""

import errno
import socket
import ssl

import httpx2
import pytest

from bridge.upstream.exchange import ConnectError, ConnectionLostError, InvalidAnswerError, ReadTimeoutError
from bridge.upstream.httpx_failures import to_engine_error

SECRET = "Set-Cookie: session=SECRET"

WRONG_VERSION = ssl.SSLError(1, SECRET)
WRONG_VERSION.reason = "WRONG_VERSION_NUMBER"


def add_cause(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


NOT_SENT = {
    "refused": (
        add_cause(httpx2.ConnectError("All connection attempts failed"), OSError(errno.ECONNREFUSED, "x")),
        "connection refused",
    ),
    "all of several refused": (
        add_cause(httpx2.ConnectError(""), ExceptionGroup("several", [OSError(errno.ECONNREFUSED, "x"), OSError()])),
        "connection refused",
    ),
    "no such name": (
        add_cause(httpx2.ConnectError(""), socket.gaierror(socket.EAI_NONAME, "Name or service not known")),
        "name or service not known",
    ),
    "TLS": (add_cause(httpx2.ConnectError(""), WRONG_VERSION), "TLS: wrong version number"),
    "timeout": (TimeoutError(), "no connection within 5 s (upstream.connect_timeout_s)"),
    "proxy refuses": (httpx2.ProxyError(f"407 {SECRET}"), "the proxy refused the tunnel"),
    "proxy speaks no HTTP": (httpx2.RemoteProtocolError(SECRET), "the proxy's answer is not HTTP"),
    "unknown": (RuntimeError(SECRET), "the connection ended at once"),
}


@pytest.mark.parametrize(("error", "text"), NOT_SENT.values(), ids=NOT_SENT)
def test_failure_before_the_request_is_a_connect_error_in_plain_words(error, text):
    found = to_engine_error(error, is_sent=False, limit_s=5)
    assert (type(found), found.sent, str(found)) == (ConnectError, False, text)


SENT = {
    "timeout": (TimeoutError(), ReadTimeoutError),
    "no answer": (httpx2.RemoteProtocolError("Server disconnected without sending a response."), ConnectionLostError),
    "half a body": (httpx2.RemoteProtocolError("peer closed connection without sending …"), ConnectionLostError),
    "half a chunk": (httpx2.RemoteProtocolError("peer unexpectedly closed connection"), ConnectionLostError),
    "reset": (httpx2.ReadError(""), ConnectionLostError),
    "broken pipe": (httpx2.WriteError(""), ConnectionLostError),
    "no HTTP": (httpx2.RemoteProtocolError(f"illegal header line: {SECRET}"), InvalidAnswerError),
    "an answer after a GOAWAY": (
        httpx2.LocalProtocolError("Invalid input ConnectionInputs.RECV_DATA in state ConnectionState.CLOSED"),
        ConnectionLostError,
    ),
    "h2's own": (ValueError(SECRET), InvalidAnswerError),
}


@pytest.mark.parametrize(("error", "kind"), SENT.values(), ids=SENT)
def test_failure_after_the_request_quotes_nothing(error, kind):
    found = to_engine_error(error, is_sent=True, limit_s=5)
    assert (type(found), found.sent) == (kind, True)
    assert "SECRET" not in str(found)
    assert str(found)
