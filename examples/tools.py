"""A tool call: join its fragments, run the tool, send the result. `python examples/tools.py [HOST:PORT]`."""

import json
import sys
from collections.abc import Iterable

import grpc

from ollmbridge.v1 import chat_completion_service_pb2 as pb
from ollmbridge.v1 import chat_completion_service_pb2_grpc as pb_grpc
from ollmbridge.v1 import chat_pb2

PARAMETERS = '{"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]}'


def get_weather(location: str) -> str:
    """Return the weather: this is the tool."""
    return f"21 degrees in {location}"


def join_fragments(chunks: Iterable[pb.StreamChatCompletionResponse]) -> list[chat_pb2.ToolCall]:
    """Join the fragments of each call, by index. An unset or empty id or name replaces nothing."""
    calls: dict[int, chat_pb2.ToolCall] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            for fragment in choice.delta.tool_calls:
                call = calls.setdefault(fragment.index, chat_pb2.ToolCall(type="function"))
                call.id = fragment.id or call.id
                call.function.name = fragment.function.name or call.function.name
                call.function.arguments += fragment.function.arguments
    return [calls[index] for index in sorted(calls)]


def main(address: str) -> None:
    """Call the model, run the tools that it calls, and call it again with the results."""
    with grpc.insecure_channel(address) as channel:
        stub = pb_grpc.ChatCompletionServiceStub(channel)
        request = pb.CreateChatCompletionRequest(model="near_qwen3_30b")
        request.messages.add(role="user", text="What is the weather in Paris?")
        tool = request.tools.add().function
        tool.name, tool.description, tool.parameters_json = "get_weather", "The weather at a place.", PARAMETERS

        calls = join_fragments(stub.StreamChatCompletion(request, timeout=60))
        request.messages.add(role="assistant", tool_calls=calls)
        for call in calls:
            result = get_weather(**json.loads(call.function.arguments))  # the model wrote these: check them
            print(f"{call.function.name}({call.function.arguments}) gave {result}")
            request.messages.add(role="tool", tool_call_id=call.id, text=result)
        print(stub.CreateChatCompletion(request, timeout=60).choices[0].message.text)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051")
