"""Callers of the bridge: one that makes a single call, and one that does what the status advises.

The second has the budget that Failover Bench gives every system: two retries, and one other model. The retries are a
stock client's: gRPC's own retry policy for UNAVAILABLE and RESOURCE_EXHAUSTED, which waits as the bridge's trailer
says. After any other failure it asks the other model at once, but for a rejected prompt, which is no better elsewhere.
"""

import json
import time
from dataclasses import dataclass

import grpc

from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionRequest
from ollmbridge.v1.chat_completion_service_pb2_grpc import ChatCompletionServiceStub
from tests.kit.client import decode_failure

__all__ = ["CALLERS", "Caller", "Outcome", "call"]

ATTEMPTS_MAX = 3
REJECTED = "content_policy_violation"


@dataclass
class Outcome:
    """What came of a call. `code` is "OK", or that of the status, or "" if nothing came in time."""

    code: str = ""
    text: str = ""
    model: str = ""
    has_usage: bool = False
    message: str = ""
    upstream_code: str = ""
    took_s: float = 0.0


@dataclass(frozen=True)
class Caller:
    """Whether a caller retries, and then asks another model."""

    follows_status: bool

    def list_channel_options(self, backoff_s: float) -> list[tuple[str, str | int]]:
        """Return the options of its channel: gRPC's retry policy, if it retries."""
        if not self.follows_status:
            return [("grpc.enable_retries", 0)]
        policy = {
            "maxAttempts": ATTEMPTS_MAX,
            "initialBackoff": f"{backoff_s}s",
            "maxBackoff": "8s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
        }
        return [("grpc.service_config", json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": policy}]}))]

    async def ask(self, stub: ChatCompletionServiceStub, model: str, other: str) -> Outcome:
        """Ask a model, or else the other one, and return what came of it."""
        started_at = time.monotonic()
        outcome = await call(stub, model)
        if self.follows_status and outcome.code != "OK" and outcome.upstream_code != REJECTED:
            outcome = await call(stub, other)
        outcome.took_s = time.monotonic() - started_at
        return outcome


CALLERS = {
    "a single call": Caller(follows_status=False),
    "a caller that follows the status": Caller(follows_status=True),
}


async def call(stub: ChatCompletionServiceStub, model: str) -> Outcome:
    """Make a call, and take its end for what it is."""
    request = CreateChatCompletionRequest(model=model)
    request.messages.add(role="user", text="What does a bridge owe its carters?")
    request.stream_options.include_usage = True
    outcome = Outcome()
    try:
        async for chunk in stub.StreamChatCompletion(request):
            outcome.text += "".join(choice.delta.content for choice in chunk.choices)
            outcome.model = chunk.model or outcome.model
            outcome.has_usage = outcome.has_usage or chunk.HasField("usage")
        outcome.code = "OK"
    except grpc.aio.AioRpcError as error:
        failure = decode_failure(error)
        outcome.code, outcome.message = failure.code, failure.message
        if "ErrorInfo" in failure.details:
            outcome.upstream_code = failure.info.metadata.get("upstreamCode", "")
    return outcome
