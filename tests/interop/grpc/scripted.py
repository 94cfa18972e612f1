"""The product's boundary around a service whose statuses and metadata are scripted.

A scripted service says what its caller must see: a status with any code and details, and any metadata. The bridge's own
statuses are made of BridgeError, so the boundary runs as in the product, and only what it sends last is replaced.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from google.protobuf import any_pb2
from google.rpc import status_pb2

from bridge.core.errors import BridgeError, Code
from bridge.core.headers import HeaderPolicy, Metadata
from bridge.server.boundary import Boundary
from bridge.server.callers import Callers
from bridge.server.methods import Service
from bridge.server.rpc import Rpc
from bridge.settings import Settings
from bridge.telemetry import Observer
from ollmbridge.v1 import error_details_pb2 as details_pb2

_DETAILS = "grpc-status-details-bin"


class ScriptedRpc:
    """A call of any transport, which ends as its service says. All that is not here is the call's own."""

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc
        self._status: status_pb2.Status | None = None
        self._has_sent_headers = False
        self.trailers: list[tuple[str, str | bytes]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rpc, name)

    async def send_headers(self, metadata: Sequence[tuple[str, str | bytes]]) -> None:
        """Send the service's metadata; what the boundary itself would send after it is left out."""
        if not self._has_sent_headers:
            self._has_sent_headers = True
            await self._rpc.send_headers(metadata)

    def make_failure(self, code: int, message: str, details: Iterable[any_pb2.Any] = ()) -> BridgeError:
        """Return an error to raise: the call ends with this status."""
        self._status = status_pb2.Status(code=code, message=message, details=details)
        return BridgeError(Code.ABORTED, details_pb2.ERROR_REASON_UPSTREAM_CONFLICT, "scripted")

    def end(self, code: int, message: str, trailers: Metadata) -> None:
        """End the call as scripted, or else as the boundary says."""
        status = self._status
        if status is not None and code == Code.ABORTED:
            others = [trailer for trailer in trailers if trailer[0] != _DETAILS]
            code, message, trailers = status.code, status.message, [*others, (_DETAILS, status.SerializeToString())]
        self._rpc.end(code, message, [*trailers, *self.trailers])


class ScriptedBoundary(Boundary):
    """The boundary around a scripted service."""

    async def handle(self, rpc: Rpc) -> None:
        await super().handle(ScriptedRpc(rpc))


def make_boundary(service: Service, settings: Settings, observers: Sequence[Observer] = ()) -> ScriptedBoundary:
    """Return a boundary that serves a scripted service."""
    return ScriptedBoundary(service, HeaderPolicy(product="scripted/1"), Callers(settings), settings, observers)
