"""One completion in one message. `python examples/unary.py [HOST:PORT]`."""

import sys

import grpc

from ollmbridge.v1 import chat_completion_service_pb2 as pb
from ollmbridge.v1 import chat_completion_service_pb2_grpc as pb_grpc

OPTIONS = [("grpc.max_receive_message_length", 16 * 1024 * 1024)]  # an answer may be larger than grpc's own 4 MiB


def main(address: str) -> None:
    """Make a call with a tag for the spend log and a key that the protos do not know."""
    with grpc.insecure_channel(address, options=OPTIONS) as channel:
        stub = pb_grpc.ChatCompletionServiceStub(channel)
        request = pb.CreateChatCompletionRequest(model="near_qwen3_30b", temperature=0.2, max_tokens=64)
        request.messages.add(role="user", text="Hello")
        request.ollm.tags["team"] = "search"
        request.extra_json["top_k"] = "40"  # JSON text, inserted byte for byte
        # If the gateway requires a key: metadata=[("authorization", "Bearer …")].
        reply = stub.CreateChatCompletion(request, timeout=60)
    print(reply.choices[0].message.text)
    print(f"{reply.usage.total_tokens} tokens, finish_reason {reply.choices[0].finish_reason}")
    for key, text in reply.extra_json.items():  # keys that the protos do not know
        print(f"{key}: {text}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051")
