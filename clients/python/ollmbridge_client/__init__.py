"""What a Python program needs to call the bridge, beside the generated modules. ../README.md shows it."""

from ollmbridge.v1.chat_completion_service_pb2_grpc import ChatCompletionServiceStub
from ollmbridge_client.accumulator import Accumulator, accumulate
from ollmbridge_client.kit import Failure, Tls, connect, connect_async, failure
from ollmbridge_client.openai_reader import from_openai
from ollmbridge_client.openai_writer import to_openai

__all__ = [
    "Accumulator",
    "ChatCompletionServiceStub",
    "Failure",
    "Tls",
    "accumulate",
    "connect",
    "connect_async",
    "failure",
    "from_openai",
    "to_openai",
]
