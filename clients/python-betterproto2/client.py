"""The cases of ../CASES.md, with betterproto2 and grpclib: `python client.py [CASE …]`.

grpclib works on asyncio: a deadline is a TimeoutError, a cancelled call is a cancelled task, and a listener gets the
trailers. It has no retry policy.
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
from grpclib.events import RecvTrailingMetadata, listen
from grpclib.exceptions import StreamTerminatedError
from grpclib.health.v1.health_grpc import HealthStub
from grpclib.health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

Line: TypeAlias = dict[str, Any]
Detail = TypeVar("Detail", bound=Message)
Reply = TypeVar("Reply")

MODEL = "near_qwen3_30b"
CASE_TIMEOUT_S = 60
REFUSED_TIMEOUT_S = 5
LARGE = 3_000_000
WEATHER_SCHEMA = '{"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]}'
ANSWER_SCHEMA = (
    '{"type": "object", "required": ["zulu", "alpha"], "properties": '
    '{"zulu": {"type": "integer", "maximum": 9007199254740993}, "alpha": {"type": "string"}}}'
)

ATTEMPTS_MAX = 4
BACKOFF_S = 0.05
WAIT_MAX_S = 60
RETRYABLE = (Status.UNAVAILABLE, Status.RESOURCE_EXHAUSTED)


async def main() -> None:
    """Run the named cases, or all, and print a line for each."""
    async with open_channel(os.environ.get("BRIDGE_ADDRESS", "127.0.0.1:50051")) as channel:
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
            "large_answer": lambda: large_answer(stub),
        }
        needed = {"tls": "BRIDGE_TLS_ADDRESS", "mtls": "BRIDGE_MTLS_ADDRESS"}
        for name, case in cases.items():
            if name in (sys.argv[1:] or cases) and needed.get(name, "PATH") in os.environ:
                print(json.dumps({"case": name} | await case()), flush=True)


class Details(StatusDetailsCodecBase):
    """Unpacks the details of a status into generated messages, without those of unknown types."""

    def encode(self, status: Status, message: str | None, details: Any) -> bytes:
        """Only servers encode details."""
        raise NotImplementedError

    def decode(self, status: Status, message: str | None, data: bytes) -> list[Message]:  # noqa: ARG002
        """Read `grpc-status-details-bin`."""
        known = default_message_pool.url_to_type
        return [require(packed.unpack()) for packed in rpc.Status.parse(data).details if packed.type_url in known]


def open_channel(address: str, context: ssl.SSLContext | None = None) -> Channel:
    """Open a channel, with TLS if there is a context for it."""
    host, _, port = address.rpartition(":")
    return Channel(host, int(port), ssl=context, status_details_codec=Details())


async def unary(channel: Channel, stub: v1.ChatCompletionServiceStub) -> Line:
    """A whole completion, and a request id that comes back. A unary call returns headers as trailers."""
    request = build_request("Grüße, 世界 🌍")
    request.temperature = 0.2
    request.max_tokens = 64
    request_ids: list[Any] = []

    async def on_trailers(event: RecvTrailingMetadata) -> None:
        request_ids.append(event.metadata.get("x-request-id"))

    listen(channel, RecvTrailingMetadata, on_trailers)
    metadata = {"x-request-id": "clients-unary"}
    reply = await stub.create_chat_completion(request, timeout=CASE_TIMEOUT_S, metadata=metadata)
    usage = require(reply.usage)
    return {
        "text": get_text(reply),
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
    """A streamed completion. The loop ends without an exception only if the completion is whole."""
    request = build_request("Hello")
    request.stream_options = v1.StreamOptions(include_usage=True)
    contents: list[str | None] = []
    finish_reason, total_tokens = None, None
    async for chunk in stub.stream_chat_completion(request, timeout=CASE_TIMEOUT_S):
        for choice in chunk.choices:
            contents.append(require(choice.delta).content)
            finish_reason = choice.finish_reason or finish_reason
        if chunk.usage is not None:
            total_tokens = chunk.usage.total_tokens
    text = "".join(content or "" for content in contents)
    return {"contents": contents, "text": text, "finish_reason": finish_reason, "total_tokens": total_tokens}


async def tools(stub: v1.ChatCompletionServiceStub) -> Line:
    """A tool call: join its fragments, and send it back with the tool's result."""
    function = v1.FunctionTool(
        name="get_weather", description="The weather at a place.", parameters_json=WEATHER_SCHEMA
    )
    request = build_request("What is the weather in Paris?")
    request.tools.append(v1.Tool(function=function))
    chunks = [chunk async for chunk in stub.stream_chat_completion(request, timeout=CASE_TIMEOUT_S)]
    choices = [choice for chunk in chunks for choice in chunk.choices]
    calls = join_fragments(choices)

    request.messages.append(v1.ChatMessage(role="assistant", tool_calls=calls))
    for call in calls:
        location = json.loads(require(call.function).arguments)["location"]
        request.messages.append(v1.ChatMessage(role="tool", tool_call_id=call.id, text=f"21 degrees in {location}"))
    reply = await stub.create_chat_completion(request, timeout=CASE_TIMEOUT_S)
    return {
        "fragments": sum(len(require(choice.delta).tool_calls) for choice in choices),
        "tool_calls": [
            {"id": call.id, "name": function.name, "arguments": function.arguments}
            for call in calls
            for function in [require(call.function)]
        ],
        "finish_reason": next(choice.finish_reason for choice in choices if choice.finish_reason),
        "text": get_text(reply),
    }


def join_fragments(choices: Iterable[v1.ChoiceDelta]) -> list[v1.ToolCall]:
    """Join the fragments of each call, by index. An unset or empty id or name replaces nothing."""
    calls: dict[int, v1.ToolCall] = {}
    for choice in choices:
        for fragment in require(choice.delta).tool_calls:
            call = calls.setdefault(fragment.index or 0, v1.ToolCall(type="function", function=v1.FunctionCall()))
            function, delta = require(call.function), fragment.function or v1.FunctionCallDelta()
            call.id = fragment.id or call.id
            function.name = delta.name or function.name
            function.arguments += delta.arguments or ""
    return [calls[index] for index in sorted(calls)]


async def ollm_options(stub: v1.ChatCompletionServiceStub) -> Line:
    """Every option of the gateway."""
    request = build_request("Hello", model="ollm::function_name::scenario::mirror")
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
        "request": get_text(reply),
        "model": reply.model,
        "episode_id": reply.episode_id,
        "raw_usage": reply.raw_usage_json is not None,
        "raw_response": reply.raw_response_json is not None,
    }


async def extra_json(stub: v1.ChatCompletionServiceStub) -> Line:
    """JSON text that crosses unchanged, both ways."""
    request = build_request("Hello", model="scenario::mirror")
    request.messages[0].extra_json["mark"] = "[18446744073709551615]"
    schema = v1.ResponseFormatJsonSchema(name="answer", strict=True, schema_json=ANSWER_SCHEMA)
    request.response_format = v1.ResponseFormat(json_schema=schema)
    request.extra_json["exact"] = '{"z": 9007199254740993, "price": 1.10, "exponent": 1e2, "a": null}'
    mirrored = await stub.create_chat_completion(request, timeout=CASE_TIMEOUT_S)
    unknown = build_request("Hello", model="scenario::unknown_fields")
    reply = await stub.create_chat_completion(unknown, timeout=CASE_TIMEOUT_S)
    return {
        "request": get_text(mirrored),
        "reply": reply.extra_json,
        "message": require(reply.choices[0].message).extra_json,
    }


async def error(stub: v1.ChatCompletionServiceStub) -> Line:
    """A failure with all its details."""
    model = (
        "scenario::error?status=400&code=context_length_exceeded&param=messages[0].content"
        "&message=the+prompt+is+too+long&retry_after=2.5&raw=1"
    )
    failure = await expect_failure(
        stub, build_request("Hello", model=model), metadata={"x-request-id": "clients-error"}
    )
    info = find_detail(failure, rpc.ErrorInfo)
    upstream = find_detail(failure, v1.UpstreamError)
    return {
        "code": failure.status.name,
        "message": failure.message,
        "error_info": {"reason": info.reason, "domain": info.domain, "metadata": info.metadata},
        "retry_after_s": get_retry_after_s(failure),
        "field_violations": [
            {"field": violation.field, "description": violation.description}
            for violation in find_detail(failure, rpc.BadRequest).field_violations
        ],
        "request_id": find_detail(failure, rpc.RequestInfo).request_id,
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
    """A failure whose message is larger than trailers may be."""
    failure = await expect_failure(stub, build_request("Hello", model="scenario::error?status=500&size=8192"))
    upstream = find_detail(failure, v1.UpstreamError)
    return {
        "code": failure.status.name,
        "reason": find_detail(failure, rpc.ErrorInfo).reason,
        "truncated": upstream.truncated,
        "message_whole": set(failure.message or "") == {"错"},
        "upstream_message_whole": set(upstream.message or "") == {"错"},
    }


async def deadline(stub: v1.ChatCompletionServiceStub) -> Line:
    """A stream that stalls, and a deadline. grpclib's own timer ends it, unless the bridge's status comes first."""
    started_s = time.monotonic()
    text, code = "", "OK"
    try:
        async for chunk in stub.stream_chat_completion(
            build_request("Hello", model="scenario::stall?after=2"), timeout=1
        ):
            text += get_content(chunk)
    except TimeoutError:
        code = Status.DEADLINE_EXCEEDED.name
    except GRPCError as failure:
        code = failure.status.name
    return {"text": text, "code": code, "within": 0.9 <= time.monotonic() - started_s < 5}


async def cancel(stub: v1.ChatCompletionServiceStub) -> Line:
    """Cancel a stream after its third chunk, by cancelling its task."""
    chunks: list[str] = []
    enough = asyncio.Event()

    async def read(call: AsyncIterator[v1.StreamChatCompletionResponse]) -> None:
        async for chunk in call:
            chunks.append(get_content(chunk))
            if len(chunks) == 3:
                enough.set()

    request = build_request("Hello", model="scenario::stall?after=3")
    reading = asyncio.create_task(read(stub.stream_chat_completion(request, timeout=CASE_TIMEOUT_S)))
    await enough.wait()
    reading.cancel()
    await asyncio.wait([reading])
    return {
        "text": "".join(chunks),
        "code": Status.CANCELLED.name if reading.cancelled() else repr(reading.exception()),
    }


async def retry(stub: v1.ChatCompletionServiceStub) -> Line:
    """Two refusals that are retried after the gateway's wait, and one that asks for too long a wait."""
    flaky = build_request("Hello", model="scenario::flaky?times=2&status=429&retry_after_ms=400")
    reply = await call_with_retries(lambda: stub.create_chat_completion(flaky, timeout=30))
    large = build_request("x" * LARGE, model="scenario::flaky?times=1&status=503")
    large_reply = await call_with_retries(lambda: stub.create_chat_completion(large, timeout=30))
    limited = build_request("Hello", model="scenario::rate_limited?retry_after=61")
    try:
        await call_with_retries(lambda: stub.create_chat_completion(limited, timeout=30))
    except GRPCError as failure:
        return {
            "text": get_text(reply),
            "large": len(get_text(large_reply) or ""),
            "given_up": failure.status.name,
            "retry_after_s": get_retry_after_s(failure),
        }
    raise SystemExit(f"{limited.model}: the call did not fail")


async def call_with_retries(call: Callable[[], Awaitable[Reply]]) -> Reply:
    """Retry what is safe to retry: UNAVAILABLE means that nothing was generated, RESOURCE_EXHAUSTED has a wait."""
    for attempt in range(1, ATTEMPTS_MAX):
        try:
            return await call()
        except GRPCError as failure:
            wait_s = get_retry_after_s(failure) or BACKOFF_S * 2**attempt
            if failure.status not in RETRYABLE or wait_s > WAIT_MAX_S:
                raise
            await asyncio.sleep(wait_s)
    return await call()


async def tls() -> Line:
    """TLS, with the server's authority and without it."""
    address = os.environ["BRIDGE_TLS_ADDRESS"]
    return {
        "text": await ask_over_tls(address, create_tls_context(os.environ["CA_FILE"]), CASE_TIMEOUT_S),
        "refused_untrusted": await is_refused(address, create_tls_context(None)),
    }


async def mtls() -> Line:
    """TLS with a client certificate, and without one."""
    address = os.environ["BRIDGE_MTLS_ADDRESS"]
    with_certificate = create_tls_context(os.environ["CA_FILE"])
    with_certificate.load_cert_chain(os.environ["CERT_FILE"], os.environ["KEY_FILE"])
    return {
        "text": await ask_over_tls(address, with_certificate, CASE_TIMEOUT_S),
        "refused_without_certificate": await is_refused(address, create_tls_context(os.environ["CA_FILE"])),
    }


def create_tls_context(ca_file: str | None) -> ssl.SSLContext:
    """Return a context that trusts the authorities of a file, or the system's."""
    context = ssl.create_default_context(cafile=ca_file)
    context.set_alpn_protocols(["h2"])
    return context


async def ask_over_tls(address: str, context: ssl.SSLContext, timeout_s: float) -> str | None:
    """Return the answer of a call over TLS, on a channel of its own."""
    async with open_channel(address, context) as channel:
        stub = v1.ChatCompletionServiceStub(channel)
        return get_text(await stub.create_chat_completion(build_request("Hello"), timeout=timeout_s))


async def is_refused(address: str, context: ssl.SSLContext) -> bool:
    """Return whether such a call fails, by TLS or by a closed connection."""
    try:
        await ask_over_tls(address, context, REFUSED_TIMEOUT_S)
    except (OSError, StreamTerminatedError, GRPCError) as failure:
        print(f"{address}: {failure!r}", file=sys.stderr)
        return True
    return False


async def health(channel: Channel) -> Line:
    """Health of the server, of the service, and of a service that does not exist."""
    stub = HealthStub(channel)

    async def check(service: str) -> str:
        try:
            reply = await stub.Check(HealthCheckRequest(service=service), timeout=CASE_TIMEOUT_S)
        except GRPCError as failure:
            return failure.status.name
        return str(HealthCheckResponse.ServingStatus.Name(reply.status))

    return {
        "overall": await check(""),
        "service": await check("ollmbridge.v1.ChatCompletionService"),
        "unknown": await check("no.such.Service"),
    }


async def large_answer(stub: v1.ChatCompletionServiceStub) -> Line:
    """An answer above the 4 MiB that grpc receives by default; grpclib has no such limit."""
    request = build_request("Hello", model="scenario::big?size=10000000")
    reply = await stub.create_chat_completion(request, timeout=CASE_TIMEOUT_S)
    request = build_request("Hello", model="scenario::huge_event?size=10000000")
    chunks = stub.stream_chat_completion(request, timeout=CASE_TIMEOUT_S)
    streamed = [require(choice.delta).content or "" async for chunk in chunks for choice in chunk.choices]
    return {"characters": len(require(require(reply.choices[0].message).text)), "streamed": len("".join(streamed))}


# Helpers of the cases


def build_request(text: str, *, model: str = MODEL) -> v1.CreateChatCompletionRequest:
    """Return a request with one message of the user."""
    return v1.CreateChatCompletionRequest(model=model, messages=[v1.ChatMessage(role="user", text=text)])


def get_text(reply: v1.CreateChatCompletionResponse) -> str | None:
    """Return the first choice's text."""
    return require(reply.choices[0].message).text


def require(message: Reply | None) -> Reply:
    """Return a message that must be set: in betterproto2 an unset one is None."""
    if message is None:
        raise SystemExit("a required message is unset")
    return message


def get_content(chunk: v1.StreamChatCompletionResponse) -> str:
    """Return the text that a chunk adds."""
    return "".join(require(choice.delta).content or "" for choice in chunk.choices)


async def expect_failure(
    stub: v1.ChatCompletionServiceStub, request: v1.CreateChatCompletionRequest, **options: Any
) -> GRPCError:
    """Make a call that must fail, and return its failure."""
    try:
        await stub.create_chat_completion(request, timeout=CASE_TIMEOUT_S, **options)
    except GRPCError as failure:
        return failure
    raise SystemExit(f"{request.model}: the call did not fail")


def find_detail(failure: GRPCError, kind: type[Detail]) -> Detail:
    """Return the failure's detail of a type, or an empty one."""
    return next((each for each in failure.details or () if isinstance(each, kind)), kind())


def get_retry_after_s(failure: GRPCError) -> float:
    """Return the wait that the failure asks for, or 0."""
    delay = find_detail(failure, rpc.RetryInfo).retry_delay
    return delay.total_seconds() if delay is not None else 0.0


if __name__ == "__main__":
    asyncio.run(main())
