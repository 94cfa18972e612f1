"""(c1) What a good developer writes in an afternoon: grpc.aio in front, the OpenAI SDK behind.

`openai_sdk.py UPSTREAM_URL`. Roles, texts, sampling and limits cross; tools, images, extra keys and error details do
not.
"""

import sys
from collections.abc import AsyncIterator
from typing import Any, NoReturn

import grpc
import openai
import uvloop
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from ollmbridge.v1 import chat_completion_service_pb2 as pb
from ollmbridge.v1 import chat_completion_service_pb2_grpc as pb_grpc
from ollmbridge.v1 import chat_pb2

CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
OPTIONS = (
    "temperature",
    "top_p",
    "max_tokens",
    "max_completion_tokens",
    "seed",
    "presence_penalty",
    "frequency_penalty",
)


def arguments(request: pb.CreateChatCompletionRequest) -> dict[str, Any]:
    given = {name: getattr(request, name) for name in OPTIONS if request.HasField(name)}
    messages = [{"role": message.role, "content": message.text} for message in request.messages]
    return {"model": request.model, "messages": messages, **given}


def convert_usage(usage: CompletionUsage | None) -> chat_pb2.Usage | None:
    if usage is None:
        return None
    return chat_pb2.Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
    )


def decode_reply(completion: ChatCompletion) -> pb.CreateChatCompletionResponse:
    return pb.CreateChatCompletionResponse(
        id=completion.id,
        object=completion.object,
        created=completion.created,
        model=completion.model,
        system_fingerprint=completion.system_fingerprint,
        choices=[
            chat_pb2.Choice(
                index=choice.index,
                finish_reason=choice.finish_reason,
                message=chat_pb2.ChatMessage(role=choice.message.role, text=choice.message.content),
            )
            for choice in completion.choices
        ],
        usage=convert_usage(completion.usage),
    )


def decode_chunk(chunk: ChatCompletionChunk) -> pb.StreamChatCompletionResponse:
    return pb.StreamChatCompletionResponse(
        id=chunk.id,
        object=chunk.object,
        created=chunk.created,
        model=chunk.model,
        system_fingerprint=chunk.system_fingerprint,
        choices=[
            chat_pb2.ChoiceDelta(
                index=choice.index,
                finish_reason=choice.finish_reason,
                delta=chat_pb2.MessageDelta(role=choice.delta.role, content=choice.delta.content),
            )
            for choice in chunk.choices
        ],
        usage=convert_usage(chunk.usage),
    )


class ChatCompletionService(pb_grpc.ChatCompletionServiceServicer):
    def __init__(self, client: openai.AsyncOpenAI) -> None:
        self.client = client

    async def CreateChatCompletion(
        self, request: pb.CreateChatCompletionRequest, context: grpc.aio.ServicerContext
    ) -> pb.CreateChatCompletionResponse:
        try:
            return decode_reply(await self.client.chat.completions.create(**arguments(request)))
        except openai.APIError as error:
            await refuse(error, context)

    async def StreamChatCompletion(
        self, request: pb.CreateChatCompletionRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.StreamChatCompletionResponse]:
        try:
            async with await self.client.chat.completions.create(**arguments(request), stream=True) as chunks:
                async for chunk in chunks:
                    yield decode_chunk(chunk)
        except openai.APIError as error:
            await refuse(error, context)


async def refuse(error: openai.APIError, context: grpc.aio.ServicerContext) -> NoReturn:
    status = error.status_code if isinstance(error, openai.APIStatusError) else 503
    await context.abort(CODES.get(status, grpc.StatusCode.UNAVAILABLE), error.message)


async def serve() -> None:
    async with openai.AsyncOpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none", max_retries=0) as client:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)])
        pb_grpc.add_ChatCompletionServiceServicer_to_server(ChatCompletionService(client), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        print(f"listening on 127.0.0.1:{port}", flush=True)
        await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(serve())
