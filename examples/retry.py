"""Retries by service config: the client retries what is safe to retry. `python examples/retry.py [HOST:PORT [MODEL]]`.

UNAVAILABLE means that nothing was generated, so it is safe to retry blindly. RESOURCE_EXHAUSTED is safe too, after the
wait in the bridge's `grpc-retry-pushback-ms`; -1 there stops the client. A call that ends in ABORTED may have run and
been billed, so ABORTED is not in the list. The policy is a file, which clients in all languages can read.
"""

import sys
from pathlib import Path

import grpc

from ollmbridge.v1 import chat_completion_service_pb2 as pb
from ollmbridge.v1 import chat_completion_service_pb2_grpc as pb_grpc

SERVICE_CONFIG = (Path(__file__).parents[1] / "clients" / "service_config.json").read_text(encoding="utf-8")


def main(address: str, model: str) -> None:
    """Make a call that is retried if that is safe, up to four attempts in total."""
    options = [("grpc.service_config", SERVICE_CONFIG), ("grpc.enable_retries", 1)]
    with grpc.insecure_channel(address, options=options) as channel:
        stub = pb_grpc.ChatCompletionServiceStub(channel)
        request = pb.CreateChatCompletionRequest(model=model)
        request.messages.add(role="user", text="Hello")
        try:
            print(stub.CreateChatCompletion(request, timeout=60).choices[0].message.text)
        except grpc.RpcError as error:
            print(f"given up: {error.code().name}")


if __name__ == "__main__":
    main(
        sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051",
        sys.argv[2] if len(sys.argv) > 2 else "near_qwen3_30b",
    )
