"""The methods of a service, read from its descriptor: transports register them, the boundary runs them.

A service is an object with the descriptor as `DESCRIPTOR`, and a function for each method, by its name: a coroutine
function that returns the reply, or an async generator function that yields the replies of a stream. A method takes one
message. What a message says is the service's business; how it travels is the transport's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from google.protobuf.descriptor import Descriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from bridge.server.call import RpcCall

__all__ = ["Method", "Service", "list_methods"]


class Service(Protocol):
    """What implements a service."""

    DESCRIPTOR: ServiceDescriptor


@dataclass(frozen=True)
class Method:
    """How one method runs: its message's type and class, whether it streams its replies, whether
    it may be sent any number of messages, of which it gets the first, and the service's function.
    """

    input_type: Descriptor
    request: type[Message]
    is_stream: bool
    takes_many: bool
    run: Callable[[Any, RpcCall], Any]


def list_methods(service: Service) -> Mapping[str, Method]:
    """Return the methods of a service by their names."""
    return {
        method.name: Method(
            method.input_type,
            GetMessageClass(method.input_type),
            method.server_streaming,
            method.client_streaming,
            getattr(service, method.name),
        )
        for method in service.DESCRIPTOR.methods
    }
