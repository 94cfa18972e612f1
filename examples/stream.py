"""One streamed completion. `python examples/stream.py [HOST:PORT]`."""

import asyncio
import sys

import grpc

from ollmbridge.v1 import chat_completion_service_pb2 as pb
from ollmbridge.v1 import chat_completion_service_pb2_grpc as pb_grpc


async def main(address: str) -> None:
    """Print the text as it comes. The loop ends without an exception only if the completion is whole."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = pb_grpc.ChatCompletionServiceStub(channel)
        request = pb.CreateChatCompletionRequest(model="near_qwen3_30b")
        request.messages.add(role="user", text="Tell me about bridges")
        request.stream_options.include_usage = True
        call = stub.StreamChatCompletion(request, timeout=60)
        async for chunk in call:
            for choice in chunk.choices:
                print(choice.delta.reasoning_content or choice.delta.content, end="", flush=True)
            if chunk.HasField("usage"):
                print(f"\n{chunk.usage.completion_tokens} tokens")
        metadata = dict(await call.initial_metadata())  # a stream returns headers here, a unary call in its trailers
        print("request id", metadata.get("x-request-id"))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051"))
