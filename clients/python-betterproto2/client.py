"""The cases of ../CASES.md, with betterproto2 and grpclib: `python client.py [CASE …]`.

grpclib is asyncio's: a deadline is a TimeoutError, a cancelled call is a cancelled task, initial metadata comes to a
listener. It has no retry policy.
"""

import asyncio
import json
import os
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, TypeAlias, TypeVar

from betterproto2 import Message
from gen.google import rpc
from gen.message_pool import default_message_pool
from gen.ollmbridge import v1
from grpclib import GRPCError, Status
from grpclib.client import Channel
from grpclib.encoding.base import StatusDetailsCodecBase
from grpclib.events import RecvInitialMetadata, listen
from grpclib.exceptions import StreamTerminatedError
from grpclib.health.v1.health_grpc import HealthStub
from grpclib.health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

Line: TypeAlias = dict[str, Any]
Detail = TypeVar("Detail", bound=Message)
Reply = TypeVar("Reply")

MODEL = "near_qwen3_30b"
CASE_TIMEOUT_S = 60
REFUSED_TIMEOUT_S = 5
WEATHER_SCHEMA = '{"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]}'
ANSWER_SCHEMA = (
    '{"type": "object", "required": ["zulu", "alpha"], "properties": '
    '{"zulu": {"type": "integer", "maximum": 9007199254740993}, "alpha": {"type": "string"}}}'
)

ATTEMPTS_MAX = 4
BACKOFF_S = 0.05
WAIT_MAX_S = 60
REPEATABLE = (Status.UNAVAILABLE, Status.RESOURCE_EXHAUSTED)


async def main() -> None:
    """Run the cases that are named, or all, and print a line for each."""
    async with connected(os.environ.get("BRIDGE_ADDRESS", "127.0.0.1:50051")) as channel:
        stub = v1.ChatCompletionServiceStub(channel)
        cases: dict[str, Callable[[], Awaitable[Line]]] = {
            "unary": lambda: unary(channel, stub),
            "stream": lambda: stream(stub),
            "tools": lambda: tools(stub),
            "ollm_options": lambda: ollm_options(stub),
            "extra_json": lambda: extra_json(stub),
            "error": lambda: error(stub),
            "large_error": lambda: large_error(stub),
            "deadline": lambda: deadline(stub),
            "cancel": lambda: cancel(stub),
            "retry": lambda: retry(stub),
            "tls": tls,
            "mtls": mtls,
            "health": lambda: health(channel),
        }
        needed = {"tls": "BRIDGE_TLS_ADDRESS", "mtls": "BRIDGE_MTLS_ADDRESS"}
        for name, case in cases.items():
            if name in (sys.argv[1:] or cases) and needed.get(name, "PATH") in os.environ:
                print(json.dumps({"case": name} | await case()), flush=True)


class Details(StatusDetailsCodecBase):
    """The details of a status, unpacked into generated messages; those of unknown types are left out."""

    def encode(self, status: Status, message: str | None, details: Any) -> bytes:
        """Not for a client."""
        raise NotImplementedError

    def decode(self, status: Status, message: str | None, data: bytes) -> list[Message]:  # noqa: ARG002
        """Read `grpc-status-details-bin`."""
        known = default_message_pool.url_to_type
        return [there(packed.unpack()) for packed in rpc.Status.parse(data).details if packed.type_url in known]


def connected(address: str, context: ssl.SSLContext | None = None) -> Channel:
    """Make a channel, by TLS where there is a context for it."""
    host, _, port = address.rpartition(":")
    return Channel(host, int(port), ssl=context, status_details_codec=Details())


async def unary(channel: Channel, stub: v1.ChatCompletionServiceStub) -> Line:
    """A whole answer, and a request id there and back."""
    request = asked("Grüße, 世界 🌍")
    request.temperature = 0.2
    request.max_tokens = 64
    request_ids: list[Any] = []

    async def received(event: RecvInitialMetadata) -> None:
        request_ids.append(event.metadata.get("x-request-id"))

    listen(channel, RecvInitialMetadata, received)
    metadata = {"x-request-id": "clients-unary"}
    reply = await stub.create_chat_completion(request, timeout=CASE_TIMEOUT_S, metadata=metadata)
    usage = there(reply.usage)
    return {
        "text": answer(reply),
        "finish_reason": reply.choices[0].finish_reason,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
        },
        "system_fingerprint": reply.system_fingerprint,
        "service_tier": reply.service_tier,
        "request_id": request_ids[0],
    }


async def stream(stub: v1.ChatCompletionServiceStub) -> Line:
    """The same as it is written. The loop ends without an exception only where the completion is whole."""
    request = asked("Hello")
    request.stream_options = v1.StreamOptions(include_usage=True)
    contents: list[str | None] = []
    finish_reason, total_tokens = None, None
    async for chunk in stub.stream_chat_completion(request, timeout=CASE_TIMEOUT_S):
        for choice in chunk.choices:
            contents.append(there(choice.delta).content)
            finish_reason = choice.finish_reason or finish_reason
        if chunk.usage is not None:
            total_tokens = chunk.usage.total_tokens
    text = "".join(content or "" for content in contents)
    return {"contents": contents, "text": text, "finish_reason": finish_reason, "total_tokens": total_tokens}


async def tools(stub: v1.ChatCompletionServiceStub) -> Line:
    """A tool call in fragments, joined, and sent back with the tool's result."""
    function = v1.FunctionTool(
        name="get_weather", description="The weather at a place.", parameters_json=WEATHER_SCHEMA
    )
    request = asked("What is the weather in Paris?")
    request.tools.append(v1.Tool(function=function))
    chunks = [chunk async for chunk in stub.stream_chat_completion(request, timeout=CASE_TIMEOUT_S)]
    choices = [choice for chunk in chunks for choice in chunk.choices]
    calls = joined(choices)

    request.messages.append(v1.ChatMessage(role="assistant", tool_calls=calls))
    for call in calls:
        location = json.loads(there(call.function).arguments)["location"]
        request.messages.append(v1.ChatMessage(role="tool", tool_call_id=call.id, text=f"21 degrees in {location}"))
    reply = await stub.create_chat_completion(request, timeout=CASE_TIMEOUT_S)
    return {
        "fragments": sum(len(there(choice.delta).tool_calls) for choice in choices),
        "tool_calls": [
            {"id": call.id, "name": function.name, "arguments": function.arguments}
            for call in calls
            for function in [there(call.function)]
        ],
        "finish_reason": next(choice.finish_reason for choice in choices if choice.finish_reason),
        "text": answer(reply),
    }


def joined(choices: Iterable[v1.ChoiceDelta]) -> list[v1.ToolCall]:
    """Join the fragments of each call, by index. An unset or empty id or name replaces nothing."""
    calls: dict[int, v1.ToolCall] = {}
    for choice in choices:
        for fragment in there(choice.delta).tool_calls:
            call = calls.setdefault(fragment.index, v1.ToolCall(type="function", function=v1.FunctionCall()))
            function, gained = there(call.function), fragment.function or v1.FunctionCallDelta()
            call.id = fragment.id or call.id
            function.name = gained.name or function.name
            function.arguments += gained.arguments or ""
    return [calls[index] for index in sorted(calls)]


async def ollm_options(stub: v1.ChatCompletionServiceStub) -> Line:
    """Every option of the gateway's own."""
    request = asked("Hello", model="ollm::function_name::scenario::mirror")
    request.ollm = v1.OllmOptions(
        tags={"team": "search"},
        cache_options=v1.CacheOptions(enabled="read_only", max_age_s=60, extra_json={"scope": '"team"'}),
        dryrun=True,
        variant_name="v2",
        episode_id="01890a5d-ac96-774b-bcce-b302099a8057",
        deny_unknown_fields=False,
        include_raw_usage=True,
        include_raw_response=True,
        extra_json={"note": '{"n": 9007199254740993}'},
    )
    reply = await stub.create_chat_completion(request, timeout=CASE_TIMEOUT_S)
    return {
        "request": answer(reply),
        "model": reply.model,
        "episode_id": reply.episode_id,
        "raw_usage": reply.raw_usage_json is not None,
        "raw_response": reply.raw_response_json is not None,
    }


async def extra_json(stub: v1.ChatCompletionServiceStub) -> Line:
    """JSON text that crosses as it is, both ways."""
    request = asked("Hello", model="scenario::mirror")
    request.messages[0].extra_json["mark"] = "[18446744073709551615]"
    schema = v1.ResponseFormatJsonSchema(name="answer", strict=True, schema_json=ANSWER_SCHEMA)
    request.response_format = v1.ResponseFormat(json_schema=schema)
    request.extra_json["exact"] = '{"z": 9007199254740993, "price": 1.10, "exponent": 1e2, "a": null}'
    mirrored = await stub.create_chat_completion(request, timeout=CASE_TIMEOUT_S)
    unknown = asked("Hello", model="scenario::unknown_fields")
    reply = await stub.create_chat_completion(unknown, timeout=CASE_TIMEOUT_S)
    return {
        "request": answer(mirrored),
        "reply": reply.extra_json,
        "message": there(reply.choices[0].message).extra_json,
    }


async def error(stub: v1.ChatCompletionServiceStub) -> Line:
    """A failure with all its details."""
    model = (
        "scenario::error?status=400&code=context_length_exceeded&param=messages[0].content"
        "&message=the+prompt+is+too+long&retry_after=2.5&raw=1"
    )
    failure = await failed(stub, asked("Hello", model=model), metadata={"x-request-id": "clients-error"})
    info = detail(failure, rpc.ErrorInfo)
    upstream = detail(failure, v1.UpstreamError)
    return {
        "code": failure.status.name,
        "message": failure.message,
        "error_info": {"reason": info.reason, "domain": info.domain, "metadata": info.metadata},
        "retry_after_s": retry_after_s(failure),
        "field_violations": [
            {"field": violation.field, "description": violation.description}
            for violation in detail(failure, rpc.BadRequest).field_violations
        ],
        "request_id": detail(failure, rpc.RequestInfo).request_id,
        "upstream_error": {
            "http_status": upstream.http_status,
            "message": upstream.message,
            "type": upstream.type,
            "code": upstream.code,
            "param": upstream.param,
            "extra_json": upstream.extra_json,
            "truncated": upstream.truncated,
        },
    }


async def large_error(stub: v1.ChatCompletionServiceStub) -> Line:
    """A failure whose words are larger than trailers may be."""
    failure = await failed(stub, asked("Hello", model="scenario::error?status=500&size=8192"))
    upstream = detail(failure, v1.UpstreamError)
    return {
        "code": failure.status.name,
        "reason": detail(failure, rpc.ErrorInfo).reason,
        "truncated": upstream.truncated,
        "message_whole": set(failure.message or "") == {"错"},
        "upstream_message_whole": set(upstream.message or "") == {"错"},
    }


async def deadline(stub: v1.ChatCompletionServiceStub) -> Line:
    """A stream that falls silent, and a deadline. grpclib's own timer ends it; the bridge's word may come first."""
    began_s = time.monotonic()
    text, code = "", "OK"
    try:
        async for chunk in stub.stream_chat_completion(asked("Hello", model="scenario::stall?after=2"), timeout=1):
            text += content(chunk)
    except TimeoutError:
        code = Status.DEADLINE_EXCEEDED.name
    except GRPCError as failure:
        code = failure.status.name
    return {"text": text, "code": code, "within": 0.9 <= time.monotonic() - began_s < 5}


async def cancel(stub: v1.ChatCompletionServiceStub) -> Line:
    """A stream that is cancelled after its third chunk: its task is, as anything in asyncio."""
    chunks: list[str] = []
    enough = asyncio.Event()

    async def read(call: AsyncIterator[v1.StreamChatCompletionResponse]) -> None:
        async for chunk in call:
            chunks.append(content(chunk))
            if len(chunks) == 3:
                enough.set()

    request = asked("Hello", model="scenario::stall?after=3")
    reading = asyncio.create_task(read(stub.stream_chat_completion(request, timeout=CASE_TIMEOUT_S)))
    await enough.wait()
    reading.cancel()
    await asyncio.wait([reading])
    return {
        "text": "".join(chunks),
        "code": Status.CANCELLED.name if reading.cancelled() else repr(reading.exception()),
    }


async def retry(stub: v1.ChatCompletionServiceStub) -> Line:
    """Two refusals that are repeated when the gateway asked for it, and one that asks for too long a wait."""
    flaky = asked("Hello", model="scenario::flaky?times=2&status=429&retry_after_ms=400")
    reply = await patiently(lambda: stub.create_chat_completion(flaky, timeout=30))
    limited = asked("Hello", model="scenario::rate_limited?retry_after=61")
    try:
        await patiently(lambda: stub.create_chat_completion(limited, timeout=30))
    except GRPCError as failure:
        return {
            "text": answer(reply),
            "given_up": failure.status.name,
            "retry_after_s": retry_after_s(failure),
        }
    raise SystemExit(f"{limited.model}: expected a failure, found an answer")


async def patiently(call: Callable[[], Awaitable[Reply]]) -> Reply:
    """Repeat what may be: UNAVAILABLE says that nothing was generated, RESOURCE_EXHAUSTED when to come again."""
    for attempt in range(1, ATTEMPTS_MAX):
        try:
            return await call()
        except GRPCError as failure:
            wait_s = retry_after_s(failure) or BACKOFF_S * 2**attempt
            if failure.status not in REPEATABLE or wait_s > WAIT_MAX_S:
                raise
            await asyncio.sleep(wait_s)
    return await call()


async def tls() -> Line:
    """TLS; and a server that is not to be trusted."""
    address = os.environ["BRIDGE_TLS_ADDRESS"]
    return {
        "text": await said(address, trusting(os.environ["CA_FILE"]), CASE_TIMEOUT_S),
        "refused_untrusted": await refused(address, trusting(None)),
    }


async def mtls() -> Line:
    """TLS where the caller shows a certificate; and without one."""
    address = os.environ["BRIDGE_MTLS_ADDRESS"]
    shown = trusting(os.environ["CA_FILE"])
    shown.load_cert_chain(os.environ["CERT_FILE"], os.environ["KEY_FILE"])
    return {
        "text": await said(address, shown, CASE_TIMEOUT_S),
        "refused_without_certificate": await refused(address, trusting(os.environ["CA_FILE"])),
    }


def trusting(ca_file: str | None) -> ssl.SSLContext:
    """Trust the authorities of a file, or the system's."""
    context = ssl.create_default_context(cafile=ca_file)
    context.set_alpn_protocols(["h2"])
    return context


async def said(address: str, context: ssl.SSLContext, timeout_s: float) -> str | None:
    """Ask over TLS, on a channel of its own."""
    async with connected(address, context) as channel:
        stub = v1.ChatCompletionServiceStub(channel)
        return answer(await stub.create_chat_completion(asked("Hello"), timeout=timeout_s))


async def refused(address: str, context: ssl.SSLContext) -> bool:
    """Tell whether such a call fails, by TLS or by a connection that is closed."""
    try:
        await said(address, context, REFUSED_TIMEOUT_S)
    except (OSError, StreamTerminatedError, GRPCError) as failure:
        print(f"{address}: {failure!r}", file=sys.stderr)
        return True
    return False


async def health(channel: Channel) -> Line:
    """Health of the whole, of the service, and of what is not there."""
    stub = HealthStub(channel)

    async def checked(service: str) -> str:
        try:
            reply = await stub.Check(HealthCheckRequest(service=service), timeout=CASE_TIMEOUT_S)
        except GRPCError as failure:
            return failure.status.name
        return str(HealthCheckResponse.ServingStatus.Name(reply.status))

    return {
        "overall": await checked(""),
        "service": await checked("ollmbridge.v1.ChatCompletionService"),
        "unknown": await checked("no.such.Service"),
    }


# What the cases share


def asked(text: str, *, model: str = MODEL) -> v1.CreateChatCompletionRequest:
    """Give a request with one message of the user."""
    return v1.CreateChatCompletionRequest(model=model, messages=[v1.ChatMessage(role="user", text=text)])


def answer(reply: v1.CreateChatCompletionResponse) -> str | None:
    """Give the first choice's text."""
    return there(reply.choices[0].message).text


def there(message: Reply | None) -> Reply:
    """Give a message that must be set: betterproto2 has None for one that is unset."""
    if message is None:
        raise SystemExit("expected a message to be set")
    return message


def content(chunk: v1.StreamChatCompletionResponse) -> str:
    """Give the text that a chunk adds."""
    return "".join(there(choice.delta).content or "" for choice in chunk.choices)


async def failed(
    stub: v1.ChatCompletionServiceStub, request: v1.CreateChatCompletionRequest, **options: Any
) -> GRPCError:
    """Make a call that must fail, and give its failure."""
    try:
        await stub.create_chat_completion(request, timeout=CASE_TIMEOUT_S, **options)
    except GRPCError as failure:
        return failure
    raise SystemExit(f"{request.model}: expected a failure, found an answer")


def detail(failure: GRPCError, kind: type[Detail]) -> Detail:
    """Give the failure's detail of a type, or an empty one."""
    return next((each for each in failure.details or () if isinstance(each, kind)), kind())


def retry_after_s(failure: GRPCError) -> float:
    """Give the wait that the failure asks for; 0 where it asks for none."""
    delay = detail(failure, rpc.RetryInfo).retry_delay
    return delay.total_seconds() if delay is not None else 0.0


if __name__ == "__main__":
    asyncio.run(main())
