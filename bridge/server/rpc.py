"""What the boundary asks of a call's transport: ten things, and no library behind them.

grpc.aio is one such transport (`grpc_aio.py`). Its rule: a transport runs `Boundary.handle` in a task of its own, and
cancels that task when the caller has left, when the caller's deadline has passed, or when the server is torn down. It
sends a status only by `end`, and it never lets a call end without one. Framing, compression and flow control are the
transport's; what a message says is not.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypeAlias

from bridge.core.headers import Metadata

__all__ = ["ClientDisconnectedError", "RefusedByTransportError", "Rpc"]

Certificate: TypeAlias = Mapping[str, Iterable[bytes]]
"""What a caller's certificate says, by gRPC's names of its parts, such as `peer_spiffe_id`; empty without one."""


class ClientDisconnectedError(Exception):
    """The caller has left: nothing more can be sent."""


class RefusedByTransportError(Exception):
    """The transport refused the call below the handler and told the caller so: the message was too large, or bad."""


class Rpc(Protocol):
    """One call as its transport has it. All but `has_expired` is fixed when the call starts."""

    @property
    def method(self) -> str:
        """The method's name, such as `StreamChatCompletion`."""
        ...

    @property
    def metadata(self) -> Metadata:
        """What the caller sent with the call."""
        ...

    @property
    def peer(self) -> str:
        """The caller's address as gRPC writes it, such as `ipv4:127.0.0.1:50000`."""
        ...

    @property
    def certificate(self) -> Certificate:
        """What the caller's certificate says."""
        ...

    @property
    def has_deadline(self) -> bool:
        """Whether the caller gave a deadline. The transport ends the call at it."""
        ...

    def has_expired(self) -> bool:
        """Return whether the caller's deadline has passed."""
        ...

    async def receive(self) -> bytes | None:
        """Return the call's message; None if the caller ended the call without one.

        Raises RefusedByTransportError.
        """
        ...

    async def send_headers(self, metadata: Sequence[tuple[str, str]]) -> None:
        """Send the initial metadata. At most once, and before any message. Raises ClientDisconnectedError."""
        ...

    async def send(self, message: bytes) -> None:
        """Send a message; wait while flow control holds it back. Raises ClientDisconnectedError."""
        ...

    def end(self, code: int, message: str, trailers: Metadata) -> None:
        """End the call with a status as soon as `Boundary.handle` returns; `code` is gRPC's number, 0 for OK."""
        ...
