"""TLS handshakes of callers: how many began, and why some failed, which no call's line says.

Failures are counted by OpenSSL's reason, of which a few are told apart, and logged in sum: the first at once, then one
line a minute at most, so that a scanner fills no disk. grpc.aio tells only that a handshake begins; those of the native
engine and of the web port are watched whole.
"""

import ssl
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

import structlog

__all__ = ["HANDSHAKE_S", "REASONS", "Handshakes", "watch_handshakes"]

HANDSHAKE_S: Final = 10.0
"""How long one may take, as long as a head; what waits for one is no connection yet, and no bound counts it."""

REASONS: Final = frozenset(
    {
        "CERTIFICATE_VERIFY_FAILED",
        "HTTP_REQUEST",
        "NO_APPLICATION_PROTOCOL",
        "NO_SHARED_CIPHER",
        "PEER_DID_NOT_RETURN_A_CERTIFICATE",
        "SSLV3_ALERT_BAD_CERTIFICATE",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        "TLSV1_ALERT_UNKNOWN_CA",
        "UNSUPPORTED_PROTOCOL",
        "WRONG_VERSION_NUMBER",
    }
)
"""OpenSSL's reasons that have a label of their own."""
OTHER: Final = "OTHER"
_LOG_S: Final = 60.0
_LOG: Final = structlog.get_logger("ollm_bridge")


class Handshakes:
    """`begun` counts all, `failures` those that failed, by reason."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.begun = 0
        self.failures: Counter[str] = Counter()
        self._clock = clock
        self._unlogged: Counter[str] = Counter()
        self._log_at = float("-inf")

    def begin(self) -> None:
        """Count one that begins. May be called in any thread."""
        self.begun += 1

    def fail(self, error: ssl.SSLError) -> None:
        """Count one that fails, and log how many did since the last line."""
        reason = error.reason if error.reason in REASONS else OTHER
        self.failures[reason] += 1
        self._unlogged[reason] += 1
        now = self._clock()
        if now >= self._log_at:
            reasons, self._unlogged = self._unlogged, Counter()
            self._log_at = now + _LOG_S
            _LOG.warning("TLS handshakes of callers failed", count=reasons.total(), reasons=dict(reasons))


def watch_handshakes(
    context: ssl.SSLContext, handshakes: Handshakes, choose: Callable[[], ssl.SSLContext] | None = None
) -> None:
    """Count the handshakes of a server's context; `choose` is asked for the context of each of them.

    One begins with its first message. A failure of one whose message can't be read, such as HTTP, counts as begun too,
    so that failures are a share of those that began.
    """

    class Watched(ssl.SSLObject):
        has_begun = False

        def do_handshake(self) -> None:
            try:
                super().do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise
            except ssl.SSLError as error:
                if not self.has_begun:
                    handshakes.begin()
                handshakes.fail(error)
                raise

    def begin(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        handshakes.begin()
        if isinstance(connection, Watched):
            connection.has_begun = True
        if choose is not None:
            connection.context = choose()

    context.sslobject_class = Watched
    context.sni_callback = begin  # called at each handshake, also if the caller names no server
