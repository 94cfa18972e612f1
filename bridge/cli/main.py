"""The command line: `ollm-bridge serve | emulate | chat | check | healthcheck | demo`.

Results go to standard output, everything else to standard error. The exit code is 0; 1 where a call or a check failed;
2 where the command or its settings can't be used.
"""

import argparse
import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

import grpc
import httpx2
import orjson
from google.protobuf import text_format
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as rpc_pb2
from grpc_status import rpc_status

from bridge import __version__
from bridge.core.codec import JsonError, Source, parse
from bridge.core.dialect import REQUEST
from bridge.core.errors import BridgeError
from bridge.emulator import SCENARIOS, Emulator
from bridge.process.supervisor import loop_factory, run
from bridge.server.server import header_policy, running
from bridge.settings import Loaded, SettingsError, client_key, load, split_address
from bridge.upstream.client import Call, Upstream
from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionRequest, StreamChatCompletionResponse
from ollmbridge.v1.chat_completion_service_pb2_grpc import ChatCompletionServiceStub
from ollmbridge.v1.chat_pb2 import ChatMessage, FunctionCall, ToolCall, Usage
from ollmbridge.v1.error_details_pb2 import UpstreamError

if TYPE_CHECKING:  # a name of the annotations alone
    from ollmbridge.v1.chat_completion_service_pb2_grpc import ChatCompletionServiceAsyncStub

__all__ = ["ADVICE", "main"]

Stub: TypeAlias = "ChatCompletionServiceAsyncStub"

DEFAULT_ADDRESS: Final = "127.0.0.1:50051"
DEFAULT_MODEL: Final = "near_qwen3_30b"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options.command(options))
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _run(command: Coroutine[Any, Any, int]) -> int:
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(command)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ollm-bridge", description="A gRPC front for the Origin gateway.")
    parser.add_argument("--version", action="version", version=f"ollm-bridge {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    settings = argparse.ArgumentParser(add_help=False)
    settings.add_argument("--config", type=Path, metavar="FILE.toml", help="settings file")
    settings.add_argument("--listen", metavar="HOST:PORT", help="where gRPC calls are taken; port 0: any free one")
    settings.add_argument("--admin-listen", metavar="HOST:PORT", help="where metrics and the status page are shown")
    settings.add_argument("--upstream", metavar="URL", help="the gateway's root, without /v1")

    one = commands.add_parser("serve", parents=[settings], help="serve gRPC until SIGTERM or SIGINT, then drain")
    one.add_argument("--workers", metavar="N", help="processes that share the port, or `auto`: one for each core")
    one.set_defaults(command=_serve)

    one = commands.add_parser("check", parents=[settings], help="show the settings, and whether the upstream answers")
    one.set_defaults(command=_check)

    one = commands.add_parser("chat", help="send a prompt to a bridge, and show the answer as it comes")
    one.add_argument("--address", default=DEFAULT_ADDRESS, metavar="HOST:PORT", help="the bridge (%(default)s)")
    one.add_argument("--model", default=DEFAULT_MODEL, help="model or function selector (%(default)s)")
    one.add_argument("--no-stream", action="store_true", help="ask for the whole answer at once")
    one.add_argument("--system", metavar="TEXT", help="a system message before the prompt")
    one.add_argument("--timeout", type=float, metavar="S", help="the call's deadline, seconds (none)")
    one.add_argument(
        "-o",
        dest="options",
        action="append",
        default=[],
        metavar="KEY=JSON",
        help='another key of the request\'s JSON, such as -o temperature=0.2 or -o \'ollm::tags={"team":"a"}\'',
    )
    one.add_argument("prompt", metavar="PROMPT", help="the user's message; the key, if any, is read from OLLM_API_KEY")
    one.set_defaults(command=_chat)

    one = commands.add_parser(
        "emulate",
        help="serve an emulated gateway over HTTP",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="scenarios (also chosen a request, by the model `scenario::NAME?key=value`):\n"
        + "\n".join(f"  {name:<16} {scenario.help}" for name, scenario in SCENARIOS.items()),
    )
    one.add_argument("--listen", default="127.0.0.1:8080", metavar="HOST:PORT", help="(%(default)s)")
    one.add_argument("--scenario", default="", metavar="NAME[?key=value&…]", help="what every request meets")
    one.set_defaults(command=_emulate)

    one = commands.add_parser("healthcheck", help="ask a bridge whether it is serving: exit code 0 or 1")
    one.add_argument("--address", default="127.0.0.1:9464", metavar="HOST:PORT", help="its admin port (%(default)s)")
    one.add_argument("--timeout", type=float, default=2.0, metavar="S", help="seconds (%(default)s)")
    one.set_defaults(command=_healthcheck)

    one = commands.add_parser("demo", help="emulated gateway, bridge and client in one: four calls and what they show")
    one.set_defaults(command=_demo)
    return parser


# serve, emulate, check

_NO_SUCH_ROUTE: Final = frozenset({404, 405, 410})  # before a model was named, these can only mean the path


def _loaded(options: argparse.Namespace) -> Loaded:
    flags: dict[str, Any] = {}
    if options.listen is not None:
        flags["listen"] = options.listen
    if options.admin_listen is not None:
        flags["admin_listen"] = options.admin_listen
    if options.upstream is not None:
        flags["upstream"] = {"base_url": options.upstream}
    if getattr(options, "workers", None) is not None:
        flags["workers"] = int(options.workers) if options.workers.isdecimal() else options.workers
    return load(config=options.config, flags=flags)


async def _serve(options: argparse.Namespace) -> int:
    return await run(_loaded(options), _say_listening)


def _say_listening(address: str) -> None:
    print(f"listening on {address}", flush=True)


async def _emulate(options: argparse.Namespace) -> int:
    try:
        host, port = split_address(options.listen)
        emulator = Emulator(host=host, port=port, scenario=options.scenario)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with emulator:
        _say_listening(f"{host}:{emulator.port}")
        await stop.wait()
    return 0


async def _check(options: argparse.Namespace) -> int:
    loaded = _loaded(options)
    settings = loaded.settings
    for name, value, origin in loaded.shown():
        print(f"{name} = {value}  ({origin})")
    policy = header_policy(settings)
    call = Call(headers=policy.request((), request_id="check"))
    async with Upstream(settings.upstream, policy, connections_max=1) as upstream:
        try:
            await upstream.complete(b"{}", call)
        except BridgeError as error:
            failure = error
        else:
            print(f"upstream: {settings.upstream.base_url} took an empty request: it is no gateway of this API")
            return 1
    if call.http_status is None:
        print(f"upstream: {settings.upstream.base_url} does not answer: {failure}")
        return 1
    enveloped = failure.upstream is not None and failure.upstream.HasField("message")
    right = enveloped and call.http_status not in _NO_SUCH_ROUTE
    verdict = "as a gateway should" if right else "as no gateway of this API does: is the URL right?"
    print(f"upstream: {settings.upstream.base_url} refuses an empty request with HTTP {call.http_status}, {verdict}")
    print(f"upstream: it says: {failure.message}")
    return 0 if right else 1


async def _healthcheck(options: argparse.Namespace) -> int:
    async with httpx2.AsyncClient(trust_env=False, timeout=options.timeout) as client:
        try:
            # The admin port refuses host names, which `--address` may have.
            answer = await client.get(f"http://{options.address}/healthz", headers={"host": "localhost"})
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            print(f"{options.address}: {str(error) or type(error).__name__}", file=sys.stderr)
            return 1
    state = answer.text.strip()
    if state not in {"SERVING", "NOT_SERVING"}:
        print(f"{options.address}: not an admin port of the bridge: HTTP {answer.status_code}", file=sys.stderr)
        return 1
    print(state)
    return 0 if answer.status_code == 200 else 1


# chat


async def _chat(options: argparse.Namespace) -> int:
    document: dict[str, Any] = {"model": options.model}
    messages = [{"role": "system", "content": options.system}] if options.system is not None else []
    document["messages"] = [*messages, {"role": "user", "content": options.prompt}]
    for option in options.options:
        key, equals, text = option.partition("=")
        if not (key and equals):
            raise SettingsError(f"-o: expected KEY=JSON, found {option!r}")
        try:
            parse(text.encode())
        except JsonError as error:
            raise SettingsError(f"-o {key}: expected JSON (a string in quotes), found {text!r}: {error}") from None
        document[key] = orjson.Fragment(text)
    request = _request(document)
    key = client_key()
    metadata = (("authorization", f"Bearer {key}"),) if key else ()
    async with grpc.aio.insecure_channel(options.address) as channel:
        stub = ChatCompletionServiceStub(channel)
        try:
            if options.no_stream:
                return await _chat_unary(stub, request, metadata, options.timeout)
            return await _chat_stream(stub, request, metadata, options.timeout)
        except grpc.aio.AioRpcError as error:
            print("\n".join(_told(error)), file=sys.stderr)
            return 1


def _request(document: dict[str, Any]) -> CreateChatCompletionRequest:
    """Make a request of the JSON that it stands for: the way in of what the bridge does on the way out."""
    text = orjson.dumps(document)
    return CreateChatCompletionRequest(**(REQUEST.read(orjson.loads(text), Source(text), ()) or {}))


Metadata = tuple[tuple[str, str], ...]


async def _chat_unary(
    stub: Stub,
    request: CreateChatCompletionRequest,
    metadata: Metadata,
    timeout_s: float | None,
) -> int:
    reply = await stub.CreateChatCompletion(request, metadata=metadata, timeout=timeout_s)
    for choice in reply.choices:
        message = choice.message
        print(message.text if message.HasField("text") else text_format.MessageToString(message).rstrip())
    _say_usage(reply.usage if reply.HasField("usage") else None)
    return 0


async def _chat_stream(
    stub: Stub,
    request: CreateChatCompletionRequest,
    metadata: Metadata,
    timeout_s: float | None,
) -> int:
    if not request.stream_options.HasField("include_usage"):
        request.stream_options.include_usage = True
    usage = None
    joined = _Joined()
    end = ""
    try:
        async for chunk in stub.StreamChatCompletion(request, metadata=metadata, timeout=timeout_s):
            for choice in chunk.choices:
                print(choice.delta.content, end="", flush=True)
                joined.add(choice.delta.tool_calls)
                end = end or ("\n" if choice.delta.content else "")
            usage = chunk.usage if chunk.HasField("usage") else usage
    finally:
        print(end, end="")
    for call in joined.calls():
        print(f"{call.function.name}({call.function.arguments})")
    _say_usage(usage)
    return 0


def _say_usage(usage: Usage | None) -> None:
    if usage is not None:
        counts = {each.name: value for each, value in usage.ListFields() if isinstance(value, int)}
        print("usage: " + ", ".join(f"{name} {value}" for name, value in counts.items()), file=sys.stderr)


class _Joined:
    """Tool calls joined from a stream's fragments, by index. An unset or empty id or name replaces nothing."""

    def __init__(self) -> None:
        self._calls: dict[int, ToolCall] = {}

    def add(self, fragments: Any) -> None:
        for fragment in fragments:
            call = self._calls.setdefault(fragment.index, ToolCall(type="function", function=FunctionCall()))
            call.id = fragment.id or call.id
            call.function.name = fragment.function.name or call.function.name
            call.function.arguments += fragment.function.arguments

    def calls(self) -> list[ToolCall]:
        return [self._calls[index] for index in sorted(self._calls)]


# An error, as its caller sees it

ADVICE: Final = {
    "UPSTREAM_INVALID_REQUEST": "mend the request: the upstream says which part it refuses",
    "UPSTREAM_UNAUTHENTICATED": "send a good key as authorization metadata (here: OLLM_API_KEY)",
    "UPSTREAM_PAYMENT_REQUIRED": "settle the account, then try again",
    "UPSTREAM_PERMISSION_DENIED": "use a key that may use this model",
    "UPSTREAM_NOT_FOUND": "name a model, function or variant that the gateway has",
    "UPSTREAM_CONFLICT": "decide whether to try again: the call may have run",
    "UPSTREAM_RATE_LIMITED": "wait as long as RetryInfo says, then try again",
    "UPSTREAM_PROVIDER_TIMEOUT": "try a faster model or a shorter answer",
    "UPSTREAM_PROVIDER_FAILED": "try again, or look whether the text wraps a fault of the request",
    "UPSTREAM_UNAVAILABLE": "try again with back-off",
    "UPSTREAM_INTERNAL": "tell the gateway's people the request id",
    "UPSTREAM_UNIMPLEMENTED": "do without what the gateway does not offer",
    "UPSTREAM_STREAM_ERROR": "decide whether to try again: the completion is not whole",
    "UPSTREAM_REFUSED": "read the message: the gateway refuses the request as it is",
    "INVALID_REQUEST": "mend each field named",
    "UNDECODABLE_REQUEST": "generate the client from the current protos",
    "INVALID_METADATA": "send less metadata, printable ASCII only",
    "OVERLOADED": "wait as long as RetryInfo says; if it lasts, add replicas or raise calls_max",
    "DRAINING": "call another replica; where the code is ABORTED, the call may have run",
    "CREDENTIALS_REJECTED": "give the bridge a good key: upstream.api_key_file",
    "UPSTREAM_UNREACHABLE": "check upstream.base_url, DNS and the network (ollm-bridge check)",
    "UPSTREAM_DISCONNECTED": "decide whether to try again: the call may have run",
    "UPSTREAM_TIMEOUT": "try again, or raise the timeout named",
    "INCOMPLETE_STREAM": "decide whether to try again: the completion is not whole",
    "INVALID_UPSTREAM_RESPONSE": "check that upstream.base_url is a gateway of this API (ollm-bridge check)",
    "UPSTREAM_RESPONSE_TOO_LARGE": "ask for less, or raise upstream.response_bytes_max or event_bytes_max",
    "CALLER_UNAUTHENTICATED": "send a token of the bridge's tokens_file as authorization metadata",
    "CALLER_DENIED": "add the caller's identity to tls.allowed_identities, or call with another certificate",
    "BRIDGE_FAULT": "report it: the bridge's log has the stack, under the request id",
}
_ADVICE_BY_CODE: Final = {
    "UNAVAILABLE": "check that a bridge listens at this address",
    "DEADLINE_EXCEEDED": "give the call more time",
}


def _told(error: grpc.aio.AioRpcError) -> Iterator[str]:
    """Tell a failed call: its code and message, each detail in a line, and what to do."""
    code = error.code().name
    yield f"{code}: {error.details()}"
    advice = _ADVICE_BY_CODE.get(code)
    status = rpc_status.from_call(cast("grpc.Call", error))
    for packed in status.details if status is not None else ():
        for kind in _DETAILS:
            detail = kind()
            if packed.Unpack(detail):
                yield f"  {kind.DESCRIPTOR.name}: {text_format.MessageToString(detail, as_one_line=True, as_utf8=True)}"
                if isinstance(detail, rpc_pb2.ErrorInfo):
                    advice = ADVICE.get(detail.reason)
    if advice:
        yield f"  what to do: {advice}"


_DETAILS: Final[tuple[type[Message], ...]] = (
    rpc_pb2.ErrorInfo,
    rpc_pb2.RetryInfo,
    rpc_pb2.BadRequest,
    rpc_pb2.QuotaFailure,
    rpc_pb2.RequestInfo,
    rpc_pb2.ResourceInfo,
    UpstreamError,
)


# demo

_WEATHER_TOOL: Final = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather at a place.",
        "parameters": {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]},
    },
}


async def _demo(_options: argparse.Namespace) -> int:
    async with Emulator() as emulator:
        loaded = load(flags={"listen": "127.0.0.1:0", "upstream": {"base_url": emulator.url}}, environ={})
        async with running(loaded.settings) as address, grpc.aio.insecure_channel(address) as channel:
            print(f"An emulated gateway answers at {emulator.url}, and a bridge before it at {address} (gRPC).")
            stub = ChatCompletionServiceStub(channel)
            for title, show in _DEMO:
                print(f"\n=== {title} ===\n")
                await show(stub)
    print("\nNext: `ollm-bridge serve --upstream URL`, and `ollm-bridge chat PROMPT`.")
    return 0


async def _show_unary(stub: Stub) -> None:
    tags = {"team": "search"}
    request = _request({"model": DEFAULT_MODEL, "messages": [_user("Hello")], "ollm::tags": tags, "max_tokens": 40})
    call = stub.CreateChatCompletion(request)
    _show("request", request)
    _show("response", await call)
    print(f"initial metadata: {dict(await call.initial_metadata())}")
    print(f"trailing metadata: {dict(await call.trailing_metadata())}")


async def _show_stream(stub: Stub) -> None:
    request = _request(
        {
            "model": "scenario::reasoning",
            "messages": [_user("Tell me about bridges")],
            "stream_options": {"include_usage": True},
        }
    )
    _show("request", request)
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
    request = _request({"model": DEFAULT_MODEL, "messages": [_user("Weather in Paris?")], "tools": [_WEATHER_TOOL]})
    joined = _Joined()
    async for chunk in stub.StreamChatCompletion(request):
        for fragment in (fragment for choice in chunk.choices for fragment in choice.delta.tool_calls):
            print("  fragment: " + text_format.MessageToString(fragment, as_one_line=True, as_utf8=True))
            joined.add([fragment])
    for call in joined.calls():
        print(f"joined: {call.function.name}({call.function.arguments}), which gives: 21 degrees")
        request.messages.add(role="assistant", tool_calls=[call])
        request.messages.append(ChatMessage(role="tool", tool_call_id=call.id, text="21 degrees"))
    reply = await stub.CreateChatCompletion(request)
    _show("answer", reply.choices[0].message)


async def _show_error(stub: Stub) -> None:
    request = _request({"model": "scenario::rate_limited?retry_after=2", "messages": [_user("Hello")]})
    _show("request", request)
    try:
        await stub.CreateChatCompletion(request)
    except grpc.aio.AioRpcError as error:
        print("\n".join(_told(error)))
        pushback = {key: value for key, value in error.trailing_metadata() if key == "grpc-retry-pushback-ms"}
        print(f"trailing metadata, for the client's own retries: {pushback}")


_DEMO: Final[tuple[tuple[str, Callable[[Stub], Awaitable[None]]], ...]] = (
    ("A unary call, with a tag for the spend log", _show_unary),
    ("A stream: one message a chunk; a key that the protos do not know comes as extra_json", _show_stream),
    ("A tool call: fragments joined, the result sent back", _show_tools),
    ("An error, with its details", _show_error),
)


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _show(what: str, message: Message) -> None:
    print(f"{what}:")
    for line in text_format.MessageToString(message, as_utf8=True).splitlines():
        print(f"  {line}")
