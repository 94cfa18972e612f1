"""The details of a failed call. `python examples/errors.py [HOST:PORT [MODEL]]`."""

import sys
from typing import cast

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from ollmbridge.v1 import chat_completion_service_pb2 as pb
from ollmbridge.v1 import chat_completion_service_pb2_grpc as pb_grpc
from ollmbridge.v1.error_details_pb2 import UpstreamError


def main(address: str, model: str) -> None:
    """Call a model that does not exist, and print the code, the reason and the details."""
    with grpc.insecure_channel(address) as channel:
        stub = pb_grpc.ChatCompletionServiceStub(channel)
        request = pb.CreateChatCompletionRequest(model=model)
        request.messages.add(role="user", text="Hello")
        try:
            stub.CreateChatCompletion(request, timeout=60)
        except grpc.RpcError as error:
            explain(cast("grpc.Call", error))


def explain(call: grpc.Call) -> None:
    """Print a failed call. Act on the reason: the code alone does not distinguish a 429 from an overloaded bridge."""
    print(f"{call.code().name}: {call.details()}")
    status = rpc_status.from_call(call)
    for packed in status.details if status is not None else ():
        info, retry, violations = (
            error_details_pb2.ErrorInfo(),
            error_details_pb2.RetryInfo(),
            error_details_pb2.BadRequest(),
        )
        upstream = UpstreamError()
        if packed.Unpack(info):
            print(f"reason {info.reason} of {info.domain}")
        elif packed.Unpack(retry):
            print(f"retry after {retry.retry_delay.ToTimedelta().total_seconds():g} s")
        elif packed.Unpack(violations):
            for violation in violations.field_violations:
                print(f"field {violation.field}: {violation.description}")
        elif packed.Unpack(upstream):
            print(f"the upstream answered HTTP {upstream.http_status}: {upstream.message or upstream.body_excerpt}")


if __name__ == "__main__":
    main(
        sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051",
        sys.argv[2] if len(sys.argv) > 2 else "no_such_model",
    )
