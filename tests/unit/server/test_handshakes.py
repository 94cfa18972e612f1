"""Tests of bridge/server/handshakes.py: failures are counted by reason, and logged once a minute at most."""

import ssl

import pytest
from structlog.testing import capture_logs

from bridge.server.handshakes import Handshakes, watch_handshakes
from tests.kit.certificates import Certificates


def make_error(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, "an error")
    error.reason = reason
    return error


def test_failures_are_counted_by_reason_and_unknown_ones_together():
    handshakes = Handshakes()
    for reason in ("HTTP_REQUEST", "HTTP_REQUEST", "OF_LATER", "OF_ANOTHER"):
        handshakes.fail(make_error(reason))
    assert handshakes.failures == {"HTTP_REQUEST": 2, "OTHER": 2}


def test_first_failure_is_logged_at_once_and_the_next_in_sum_after_a_minute():
    now = 100.0
    handshakes = Handshakes(lambda: now)
    with capture_logs() as lines:
        for _ in range(5):
            handshakes.fail(make_error("HTTP_REQUEST"))
        now += 59
        handshakes.fail(make_error("NO_SHARED_CIPHER"))
        now += 2
        handshakes.fail(make_error("NO_SHARED_CIPHER"))
    event = {"event": "TLS handshakes of callers failed", "log_level": "warning"}
    assert lines == [
        event | {"count": 1, "reasons": {"HTTP_REQUEST": 1}},
        event | {"count": 6, "reasons": {"HTTP_REQUEST": 4, "NO_SHARED_CIPHER": 2}},
    ]


@pytest.mark.parametrize(("sent", "reason"), [(b"GET / HTTP/1.1\r\n\r\n", "HTTP_REQUEST"), (bytes(64), None)])
def test_handshake_that_fails_is_counted(tmp_path, sent, reason):
    certificates = Certificates(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.cert_file, certificates.key_file)
    handshakes = Handshakes()
    watch_handshakes(context, handshakes)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    connection = context.wrap_bio(incoming, outgoing, server_side=True)
    with pytest.raises(ssl.SSLWantReadError):
        connection.do_handshake()
    assert handshakes.failures == {}
    incoming.write(sent)
    with pytest.raises(ssl.SSLError):
        connection.do_handshake()
    assert (handshakes.begun, handshakes.failures.total()) == (1, 1)
    assert reason is None or handshakes.failures == {reason: 1}
