"""What an HTTP engine is: it posts to one URL, and returns an answer or says how it failed.

Two engines implement these types and share no code: `Http1Engine` in `engine.py` and `HttpxEngine` in
`httpx_engine.py`. An engine follows, keeps, decodes and repeats nothing, and takes nothing from the environment. Each
failure says whether a byte of the request may have been sent, since that decides whether a completion may have run.
What a failure means to a caller is in `client.py`.
"""

from collections.abc import Sequence
from typing import ClassVar, Protocol

__all__ = [
    "Answer",
    "ConnectError",
    "ConnectionLostError",
    "Engine",
    "EngineError",
    "InvalidAnswerError",
    "ReadTimeoutError",
]


class EngineError(Exception):
    """A failure of an exchange. The text is plain, lower case, and quotes no header value, URL or password."""

    sent: ClassVar[bool]
    """Whether a byte of the request may have been sent."""


class ConnectError(EngineError):
    """No connection: DNS, TCP, TLS, the proxy, or none free within `connect_timeout_s`."""

    sent = False


class ConnectionLostError(EngineError):
    """The connection ended before the answer did."""

    sent = True


class InvalidAnswerError(EngineError):
    """The answer is not HTTP, or exceeds a limit, which the text names.

    `status` is set if the status line came; `headers` are the fields that came within the limit.
    """

    sent = True

    def __init__(self, message: str, *, status: int | None = None, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


class ReadTimeoutError(EngineError):
    """Nothing came within the time that the read was given."""

    sent = True


class Answer(Protocol):
    """An answer whose head has come. Whoever has it closes it, at its end too."""

    @property
    def status(self) -> int:
        """The final status; interim ones are passed over."""

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The header fields in their order, with lower-case names."""

    @property
    def ends_with_connection(self) -> bool:
        """Whether the body has no length and no chunks, so that a peer that breaks off looks like one that is done."""

    def read_nowait(self) -> bytes:
        """Return what has come of the body; `b""` if nothing waits, at the end and after a failure too."""

    async def read(self, timeout_s: float) -> bytes:
        """Return what has come of the body, and wait for some if nothing has; `b""` at the end.

        Bytes that came before a failure are returned before it is raised. Raises EngineError.
        """

    def close(self) -> None:
        """Return the connection if the exchange is over on both sides, else end it at once, unsent bytes included."""


class Engine(Protocol):
    """Posts to one URL over a bounded pool of connections. It is made, used and closed in one running loop."""

    @property
    def connections(self) -> int:
        """How many connections are in use or kept."""

    async def post(self, headers: Sequence[tuple[str, str]], body: bytes, *, timeout_s: float) -> Answer:
        """Post a request and return its answer when the head has come.

        `headers` are all but those of the connection (host, content-length, proxy-authorization). `timeout_s` bounds
        the wait for the head of the answer, from when the request goes out; `math.inf` is no limit. Raises
        EngineError, or ValueError for a header with a line break or a NUL, before anything is sent.
        """

    async def reach(self) -> None:
        """Make a connection, through the proxy and TLS if there are any, and close it. Raises ConnectError."""

    async def close(self) -> None:
        """Close every connection."""
