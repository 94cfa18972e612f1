"""(c2) What another good developer writes in an afternoon: grpc.aio in front, plain httpx2 and json_format behind.

`httpx_json.py UPSTREAM_URL`. The messages' own JSON mapping does the work; what it does not know is dropped.
"""

import json
import sys
from collections.abc import AsyncIterator
from typing import Any, NoReturn

import grpc
import httpx2
import uvloop
from google.protobuf import json_format

from ollmbridge.v1 import chat_completion_service_pb2 as pb
from ollmbridge.v1 import chat_completion_service_pb2_grpc as pb_grpc

CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
PATH = "/v1/chat/completions"


def encode_body(request: pb.CreateChatCompletionRequest, *, stream: bool) -> dict[str, Any]:
    body: dict[str, Any] = json_format.MessageToDict(request, preserving_proto_field_name=True)
    for message in body["messages"]:
        message["content"] = message.pop("text", None)
    return body | {"stream": stream}


def decode_reply(document: dict[str, Any]) -> pb.CreateChatCompletionResponse:
    for choice in document["choices"]:
        choice["message"]["text"] = choice["message"].pop("content")
    return json_format.ParseDict(document, pb.CreateChatCompletionResponse(), ignore_unknown_fields=True)


def decode_chunk(data: str) -> pb.StreamChatCompletionResponse:
    return json_format.ParseDict(json.loads(data), pb.StreamChatCompletionResponse(), ignore_unknown_fields=True)


class ChatCompletionService(pb_grpc.ChatCompletionServiceServicer):
    def __init__(self, client: httpx2.AsyncClient) -> None:
        self.client = client

    async def CreateChatCompletion(
        self, request: pb.CreateChatCompletionRequest, context: grpc.aio.ServicerContext
    ) -> pb.CreateChatCompletionResponse:
        try:
            response = await self.client.post(PATH, json=encode_body(request, stream=False))
            response.raise_for_status()
            return decode_reply(response.json())
        except httpx2.HTTPError as error:
            await refuse(error, context)

    async def StreamChatCompletion(
        self, request: pb.CreateChatCompletionRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.StreamChatCompletionResponse]:
        try:
            async with self.client.stream("POST", PATH, json=encode_body(request, stream=True)) as response:
                response.raise_for_status()
                async for line in response.aiter_lines():
                    data = line.removeprefix("data:").strip()
                    if data and data != "[DONE]":
                        yield decode_chunk(data)
        except httpx2.HTTPError as error:
            await refuse(error, context)


async def refuse(error: httpx2.HTTPError, context: grpc.aio.ServicerContext) -> NoReturn:
    status = error.response.status_code if isinstance(error, httpx2.HTTPStatusError) else 503
    await context.abort(CODES.get(status, grpc.StatusCode.UNAVAILABLE), str(error))


async def serve() -> None:
    limits = httpx2.Limits(max_connections=1000, max_keepalive_connections=100)
    async with httpx2.AsyncClient(base_url=sys.argv[1], timeout=600, limits=limits) as client:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)])
        pb_grpc.add_ChatCompletionServiceServicer_to_server(ChatCompletionService(client), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        print(f"listening on 127.0.0.1:{port}", flush=True)
        await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(serve())
