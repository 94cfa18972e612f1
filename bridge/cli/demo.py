"""`demo`: an emulated gateway, a bridge and a client in one process; four calls, and what they show."""

import argparse
import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import grpc
from google.protobuf import text_format
from google.protobuf.message import Message

from bridge.cli.chat import Stub, ToolCallJoiner, build_request
from bridge.cli.defaults import DEFAULT_MODEL
from bridge.cli.explain import describe_error
from bridge.emulator import Emulator
from bridge.server.server import run_server
from bridge.settings import load
from ollmbridge.v1.chat_completion_service_pb2 import StreamChatCompletionResponse
from ollmbridge.v1.chat_completion_service_pb2_grpc import ChatCompletionServiceStub
from ollmbridge.v1.chat_pb2 import ChatMessage

__all__ = ["run"]

_WEATHER_TOOL: Final = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather at a place.",
        "parameters": {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]},
    },
}


def run(_options: argparse.Namespace) -> int:
    """Show the calls, and return the exit code."""
    return asyncio.run(_show_calls())


async def _show_calls() -> int:
    async with Emulator() as emulator:
        loaded = load(flags={"listen": "127.0.0.1:0", "upstream": {"base_url": emulator.url}}, environ={})
        async with run_server(loaded.settings) as address, grpc.aio.insecure_channel(address) as channel:
            print(f"An emulated gateway answers at {emulator.url}, and a bridge in front of it at {address} (gRPC).")
            stub = ChatCompletionServiceStub(channel)
            for title, show in _DEMO:
                print(f"\n=== {title} ===\n")
                await show(stub)
    print("\nNext: `ollm-bridge serve --upstream URL`, and `ollm-bridge chat PROMPT`.")
    return 0


async def _show_unary(stub: Stub) -> None:
    tags = {"team": "search"}
    request = build_request(
        {"model": DEFAULT_MODEL, "messages": [_user_message("Hello")], "ollm::tags": tags, "max_tokens": 40}
    )
    call = stub.CreateChatCompletion(request)
    _print_message("request", request)
    _print_message("response", await call)
    print(f"initial metadata: {dict(await call.initial_metadata())}")
    print(f"trailing metadata: {dict(await call.trailing_metadata())}")


async def _show_stream(stub: Stub) -> None:
    request = build_request(
        {
            "model": "scenario::reasoning",
            "messages": [_user_message("Tell me about bridges")],
            "stream_options": {"include_usage": True},
        }
    )
    _print_message("request", request)
    call = stub.StreamChatCompletion(request)
    first = True
    async for chunk in call:
        shown = (
            chunk
            if first
            else StreamChatCompletionResponse(
                choices=chunk.choices, usage=chunk.usage if chunk.HasField("usage") else None
            )
        )
        print(f"  chunk: {text_format.MessageToString(shown, as_one_line=True, as_utf8=True)}{'' if first else ' …'}")
        first = False
    print(f"status: {(await call.code()).name}, so every choice had its finish_reason")


async def _show_tools(stub: Stub) -> None:
    request = build_request(
        {"model": DEFAULT_MODEL, "messages": [_user_message("Weather in Paris?")], "tools": [_WEATHER_TOOL]}
    )
    joiner = ToolCallJoiner()
    async for chunk in stub.StreamChatCompletion(request):
        for fragment in (fragment for choice in chunk.choices for fragment in choice.delta.tool_calls):
            print("  fragment: " + text_format.MessageToString(fragment, as_one_line=True, as_utf8=True))
            joiner.add([fragment])
    for call in joiner.join():
        print(f"joined: {call.function.name}({call.function.arguments}), which gives: 21 degrees")
        request.messages.add(role="assistant", tool_calls=[call])
        request.messages.append(ChatMessage(role="tool", tool_call_id=call.id, text="21 degrees"))
    reply = await stub.CreateChatCompletion(request)
    _print_message("answer", reply.choices[0].message)


async def _show_error(stub: Stub) -> None:
    request = build_request({"model": "scenario::rate_limited?retry_after=2", "messages": [_user_message("Hello")]})
    _print_message("request", request)
    try:
        await stub.CreateChatCompletion(request)
    except grpc.aio.AioRpcError as error:
        print("\n".join(describe_error(error)))
        pushback = {key: value for key, value in error.trailing_metadata() if key == "grpc-retry-pushback-ms"}
        print(f"trailing metadata, for the client's own retries: {pushback}")


_DEMO: Final[tuple[tuple[str, Callable[[Stub], Awaitable[None]]], ...]] = (
    ("A unary call, with a tag for the spend log", _show_unary),
    ("A stream: one message a chunk; a key that the protos do not know comes as extra_json", _show_stream),
    ("A tool call: fragments joined, the result sent back", _show_tools),
    ("An error, with its details", _show_error),
)


def _user_message(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _print_message(what: str, message: Message) -> None:
    print(f"{what}:")
    for line in text_format.MessageToString(message, as_utf8=True).splitlines():
        print(f"  {line}")
