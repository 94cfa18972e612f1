"""A service that does what it should not: what the boundary and its transports are tested with."""

from collections.abc import Awaitable, Callable
from typing import Any

from bridge.core.errors import BridgeError, Code
from bridge.server.service import ChatCompletionService
from ollmbridge.v1 import error_details_pb2 as details_pb2
from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionResponse, StreamChatCompletionResponse

SECRET = "sk-secret0123456789"
Act = Callable[[], Awaitable[Any]]


class Service:
    """Runs `act` in both methods; a stream yields `chunks` chunks first."""

    DESCRIPTOR = ChatCompletionService.DESCRIPTOR

    def __init__(self, act: Act, chunks: int = 0) -> None:
        self.act = act
        self.chunks = chunks

    async def CreateChatCompletion(self, request, call):
        call.model = request.model
        call.upstream.returned = [("x-request-id", "r-1")]
        await self.act()
        return CreateChatCompletionResponse(id="whole")

    async def StreamChatCompletion(self, request, call):
        call.model = request.model
        call.upstream.returned = [("x-request-id", "r-1")]
        for _ in range(self.chunks):
            yield StreamChatCompletionResponse(id="chunk")
        await self.act()


def fail_with(error: BaseException) -> Act:
    async def act() -> None:
        raise error

    return act


async def succeed() -> None:
    pass


ENDS = {
    "ok": succeed,
    "error": fail_with(BridgeError(Code.ABORTED, details_pb2.ERROR_REASON_UPSTREAM_CONFLICT, "no")),
    "fault": fail_with(ValueError(SECRET)),
}
