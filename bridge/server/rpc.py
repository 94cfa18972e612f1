"""What the boundary asks of a call's transport: twelve things, and no library behind them.

grpc.aio is one such transport (`grpc_aio.py`). Its rule: a transport runs `Boundary.handle` in a task of its own, and
cancels that task when the caller has left, when the caller's deadline has passed, or when the server is torn down. It
sends a status only by `end`, and it never lets a call end without one. Framing, compression and flow control are the
transport's; what a message says is not.
"""

import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeAlias

from bridge.core.headers import Metadata
from bridge.core.status import GrpcStatus

__all__ = [
    "Caller",
    "Certificate",
    "ClientDisconnectedError",
    "Identify",
    "RefusedByTransportError",
    "Rpc",
    "RpcMethod",
    "TakeRoom",
    "find_expiry",
]

Certificate: TypeAlias = Mapping[str, Iterable[bytes]]
"""A caller's certificate by gRPC's names of its parts, of which one is read (`peer.py`); empty without one."""


TakeRoom: TypeAlias = Callable[[], Awaitable[None]]
"""What a transport waits for, once, before it lets its caller send more of a message than comes unasked."""


class Caller(NamedTuple):
    """A caller. `name` is "" if nothing identifies them; `bucket` tells callers apart, and holds no key."""

    name: str
    bucket: str


class ClientDisconnectedError(Exception):
    """The caller has left: nothing more can be sent."""


class RefusedByTransportError(Exception):
    """The transport refused the call below the handler and told the caller so: the message was too large, or bad.

    `code` is the name of the status's code, as far as the transport knows it.
    """

    def __init__(self, code: str = "RESOURCE_EXHAUSTED") -> None:
        super().__init__(code)
        self.code = code


def find_expiry(timeout_s: float | None, now: float) -> float:
    """Return from when on an end from outside counts as the deadline's, on the clock of `now`; never without one.

    That is a little before the deadline. A caller's clock began to run before ours, so the caller's own end of a call
    that is late, a reset, comes about when our deadline passes, and as often before it as after.
    """
    if timeout_s is None:
        return math.inf
    return now + timeout_s - min(0.1, max(0.01, timeout_s / 5))


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
    def caller(self) -> Caller | None:
        """Who makes the call, if the transport has asked `RpcMethod.identify`."""
        ...

    @property
    def timeout_s(self) -> float | None:
        """The time that the caller gave the call; None without a deadline. The transport ends the call at it."""
        ...

    def has_expired(self) -> bool:
        """Return whether the caller's deadline has passed."""
        ...

    async def receive(self, take_room: TakeRoom | None = None) -> bytes | None:
        """Return the call's message; None if the caller ended the call without one.

        A message that comes whole in what may come unasked takes no room, as far as the transport knows it. Raises
        RefusedByTransportError.
        """
        ...

    async def decode(self, data: bytes) -> bytes | None:
        """Return the message in what `receive` returned, which may be another form of it (JSON); None if it is cut.

        Raises RefusedByTransportError, or BridgeError if it says nothing that a message can say.
        """
        ...

    async def send_headers(self, metadata: Sequence[tuple[str, str]]) -> None:
        """Send the initial metadata. At most once, and before any message. Raises ClientDisconnectedError."""
        ...

    async def send(self, message: bytes, on_progress: Callable[[], None] | None = None) -> None:
        """Send a message; wait while flow control holds it back. Raises ClientDisconnectedError.

        `on_progress` is called when the caller has taken a part of it, as far as the transport knows.
        """
        ...

    def end(self, code: int, message: str, trailers: Metadata) -> None:
        """End the call with a status as soon as `Boundary.handle` returns; `code` is gRPC's number, 0 for OK."""
        ...


class Identify(Protocol):
    """Says who makes a call that has arrived."""

    def __call__(
        self, method: str, metadata: Metadata, certificate: Certificate, peer: str, arriving: Mapping[str, int]
    ) -> Caller | GrpcStatus | None:
        """Return the caller, for `Rpc.caller`; or the status of a call that is refused since its caller has too many.

        None leaves it to `RpcMethod.handle`, which refuses the call. `arriving` is how many calls of each caller, by
        `bucket`, were let in and not handed to `handle` yet, less those that were cancelled and have not ended.
        """
        ...


class RpcMethod(NamedTuple):
    """A method that a transport serves: for each call of it, `handle` runs until the call has a status.

    `is_unary`: at most one message is sent. `takes_many`: any number of messages is taken, else one. `refuse`, if there
    is one, returns the status of a call that is to be refused before an Rpc is made of it; it takes the method's name
    and how many calls were let in but not handed to `handle` yet. `identify` does the same for calls of one caller; a
    transport that has not read a call's head before it makes an Rpc need not ask it.
    """

    service: str
    name: str
    is_unary: bool
    handle: Callable[[Rpc], Awaitable[None]]
    refuse: Callable[[str, int], GrpcStatus | None] | None = None
    takes_many: bool = False
    identify: Identify | None = None
