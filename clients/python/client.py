"""The cases of ../CASES.md, with grpcio: `python client.py [CASE …]`. The environment has the bridge's address."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2 as rpc_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from ollmbridge.v1 import chat_completion_service_pb2 as pb
from ollmbridge.v1 import chat_completion_service_pb2_grpc as pb_grpc
from ollmbridge.v1 import chat_pb2
from ollmbridge.v1.error_details_pb2 import UpstreamError

Stub: TypeAlias = "pb_grpc.ChatCompletionServiceStub"
Line: TypeAlias = dict[str, Any]
Detail = TypeVar("Detail", bound=Message)

MODEL = "near_qwen3_30b"
CASE_TIMEOUT_S = 60
REFUSED_TIMEOUT_S = 5
SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": "ollmbridge.v1.ChatCompletionService"}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.01s",
                "maxBackoff": "0.05s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
            },
        }
    ]
}
WEATHER_SCHEMA = '{"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]}'
ANSWER_SCHEMA = (
    '{"type": "object", "required": ["zulu", "alpha"], "properties": '
    '{"zulu": {"type": "integer", "maximum": 9007199254740993}, "alpha": {"type": "string"}}}'
)


def main() -> None:
    """Run the named cases, or all, and print a line for each."""
    address = os.environ.get("BRIDGE_ADDRESS", "127.0.0.1:50051")
    options = [("grpc.service_config", json.dumps(SERVICE_CONFIG))]
    with grpc.insecure_channel(address, options=options) as channel:
        stub = pb_grpc.ChatCompletionServiceStub(channel)
        cases: dict[str, Callable[[], Line]] = {
            "unary": lambda: unary(stub),
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
                print(json.dumps({"case": name} | case()), flush=True)


def unary(stub: Stub) -> Line:
    """A whole completion, and a request id that comes back. A unary call returns headers as trailers."""
    request = build_request("Grüße, 世界 🌍")
    request.temperature = 0.2
    request.max_tokens = 64
    metadata = (("x-request-id", "clients-unary"),)
    reply, call = stub.CreateChatCompletion.with_call(request, timeout=CASE_TIMEOUT_S, metadata=metadata)
    usage = reply.usage
    return {
        "text": reply.choices[0].message.text,
        "finish_reason": get_optional(reply.choices[0], "finish_reason"),
        "usage": {name: getattr(usage, name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")},
        "system_fingerprint": get_optional(reply, "system_fingerprint"),
        "service_tier": get_optional(reply, "service_tier"),
        "request_id": dict(call.trailing_metadata())["x-request-id"],
    }


def stream(stub: Stub) -> Line:
    """A streamed completion. The loop ends without an exception only if the completion is whole."""
    request = build_request("Hello")
    request.stream_options.include_usage = True
    contents: list[str | None] = []
    finish_reason, total_tokens = None, None
    for chunk in stub.StreamChatCompletion(request, timeout=CASE_TIMEOUT_S):
        for choice in chunk.choices:
            contents.append(get_optional(choice.delta, "content"))
            finish_reason = choice.finish_reason or finish_reason
        if chunk.HasField("usage"):
            total_tokens = chunk.usage.total_tokens
    text = "".join(content or "" for content in contents)
    return {"contents": contents, "text": text, "finish_reason": finish_reason, "total_tokens": total_tokens}


def tools(stub: Stub) -> Line:
    """A tool call: join its fragments, and send it back with the tool's result."""
    request = build_request("What is the weather in Paris?")
    function = request.tools.add().function
    function.name = "get_weather"
    function.description = "The weather at a place."
    function.parameters_json = WEATHER_SCHEMA
    chunks = list(stub.StreamChatCompletion(request, timeout=CASE_TIMEOUT_S))
    choices = [choice for chunk in chunks for choice in chunk.choices]
    calls = join_fragments(choices)

    request.messages.add(role="assistant", tool_calls=calls)
    for call in calls:
        location = json.loads(call.function.arguments)["location"]
        request.messages.add(role="tool", tool_call_id=call.id, text=f"21 degrees in {location}")
    reply = stub.CreateChatCompletion(request, timeout=CASE_TIMEOUT_S)
    return {
        "fragments": sum(len(choice.delta.tool_calls) for choice in choices),
        "tool_calls": [
            {"id": call.id, "name": call.function.name, "arguments": call.function.arguments} for call in calls
        ],
        "finish_reason": next(choice.finish_reason for choice in choices if choice.finish_reason),
        "text": reply.choices[0].message.text,
    }


def join_fragments(choices: Iterable[chat_pb2.ChoiceDelta]) -> list[chat_pb2.ToolCall]:
    """Join the fragments of each call, by index. An unset or empty id or name replaces nothing."""
    calls: dict[int, chat_pb2.ToolCall] = {}
    for choice in choices:
        for fragment in choice.delta.tool_calls:
            call = calls.setdefault(fragment.index, chat_pb2.ToolCall(type="function"))
            call.id = fragment.id or call.id
            call.function.name = fragment.function.name or call.function.name
            call.function.arguments += fragment.function.arguments
    return [calls[index] for index in sorted(calls)]


def ollm_options(stub: Stub) -> Line:
    """Every option of the gateway."""
    request = build_request("Hello", model="ollm::function_name::scenario::mirror")
    ollm = request.ollm
    ollm.tags["team"] = "search"
    ollm.cache_options.enabled = "read_only"
    ollm.cache_options.max_age_s = 60
    ollm.cache_options.extra_json["scope"] = '"team"'
    ollm.dryrun = True
    ollm.variant_name = "v2"
    ollm.episode_id = "01890a5d-ac96-774b-bcce-b302099a8057"
    ollm.deny_unknown_fields = False
    ollm.include_raw_usage = True
    ollm.include_raw_response = True
    ollm.extra_json["note"] = '{"n": 9007199254740993}'
    reply = stub.CreateChatCompletion(request, timeout=CASE_TIMEOUT_S)
    return {
        "request": reply.choices[0].message.text,
        "model": reply.model,
        "episode_id": get_optional(reply, "episode_id"),
        "raw_usage": reply.HasField("raw_usage_json"),
        "raw_response": reply.HasField("raw_response_json"),
    }


def extra_json(stub: Stub) -> Line:
    """JSON text that crosses unchanged, both ways."""
    request = build_request("Hello", model="scenario::mirror")
    request.messages[0].extra_json["mark"] = "[18446744073709551615]"
    schema = request.response_format.json_schema
    schema.name = "answer"
    schema.strict = True
    schema.schema_json = ANSWER_SCHEMA
    request.extra_json["exact"] = '{"z": 9007199254740993, "price": 1.10, "exponent": 1e2, "a": null}'
    mirrored = stub.CreateChatCompletion(request, timeout=CASE_TIMEOUT_S)
    reply = stub.CreateChatCompletion(build_request("Hello", model="scenario::unknown_fields"), timeout=CASE_TIMEOUT_S)
    return {
        "request": mirrored.choices[0].message.text,
        "reply": dict(reply.extra_json),
        "message": dict(reply.choices[0].message.extra_json),
    }


def error(stub: Stub) -> Line:
    """A failure with all its details."""
    model = (
        "scenario::error?status=400&code=context_length_exceeded&param=messages[0].content"
        "&message=the+prompt+is+too+long&retry_after=2.5&raw=1"
    )
    failure = expect_failure(stub, build_request("Hello", model=model), metadata=(("x-request-id", "clients-error"),))
    info = find_detail(failure, rpc_pb2.ErrorInfo)
    upstream = find_detail(failure, UpstreamError)
    return {
        "code": failure.code().name,
        "message": failure.details(),
        "error_info": {"reason": info.reason, "domain": info.domain, "metadata": dict(info.metadata)},
        "retry_after_s": get_retry_after_s(failure),
        "field_violations": [
            {"field": violation.field, "description": violation.description}
            for violation in find_detail(failure, rpc_pb2.BadRequest).field_violations
        ],
        "request_id": find_detail(failure, rpc_pb2.RequestInfo).request_id,
        "upstream_error": {
            "http_status": upstream.http_status,
            "message": get_optional(upstream, "message"),
            "type": get_optional(upstream, "type"),
            "code": get_optional(upstream, "code"),
            "param": get_optional(upstream, "param"),
            "extra_json": dict(upstream.extra_json),
            "truncated": upstream.truncated,
        },
    }


def large_error(stub: Stub) -> Line:
    """A failure whose message is larger than trailers may be."""
    failure = expect_failure(stub, build_request("Hello", model="scenario::error?status=500&size=8192"))
    upstream = find_detail(failure, UpstreamError)
    return {
        "code": failure.code().name,
        "reason": find_detail(failure, rpc_pb2.ErrorInfo).reason,
        "truncated": upstream.truncated,
        "message_whole": set(failure.details() or "") == {"错"},
        "upstream_message_whole": set(upstream.message) == {"错"},
    }


def deadline(stub: Stub) -> Line:
    """A stream that stalls, and a deadline."""
    started_s = time.monotonic()
    text, code = "", "OK"
    try:
        for chunk in stub.StreamChatCompletion(build_request("Hello", model="scenario::stall?after=2"), timeout=1):
            text += get_content(chunk)
    except grpc.RpcError as failure:
        code = failure.code().name
    return {"text": text, "code": code, "within": 0.9 <= time.monotonic() - started_s < 5}


def cancel(stub: Stub) -> Line:
    """Cancel a stream after its third chunk."""
    call = stub.StreamChatCompletion(build_request("Hello", model="scenario::stall?after=3"), timeout=CASE_TIMEOUT_S)
    text = "".join(get_content(next(call)) for _ in range(3))
    call.cancel()
    return {"text": text, "code": call.code().name}


def retry(stub: Stub) -> Line:
    """Two refusals that the service config retries after the gateway's wait, and one that it does not retry."""
    flaky = build_request("Hello", model="scenario::flaky?times=2&status=429&retry_after_ms=400")
    reply = stub.CreateChatCompletion(flaky, timeout=30)
    failure = expect_failure(stub, build_request("Hello", model="scenario::rate_limited?retry_after=61"))
    return {
        "text": reply.choices[0].message.text,
        "given_up": failure.code().name,
        "retry_after_s": get_retry_after_s(failure),
    }


def tls() -> Line:
    """TLS, with the server's authority and without it."""
    address = os.environ["BRIDGE_TLS_ADDRESS"]
    credentials = grpc.ssl_channel_credentials(read_file("CA_FILE"))
    return {
        "text": ask_over_tls(address, credentials, CASE_TIMEOUT_S),
        "refused_untrusted": ask_over_tls(address, grpc.ssl_channel_credentials(), REFUSED_TIMEOUT_S) is None,
    }


def mtls() -> Line:
    """TLS with a client certificate, and without one."""
    address = os.environ["BRIDGE_MTLS_ADDRESS"]
    ca, key, cert = read_file("CA_FILE"), read_file("KEY_FILE"), read_file("CERT_FILE")
    with_certificate = grpc.ssl_channel_credentials(ca, key, cert)
    without_certificate = grpc.ssl_channel_credentials(ca)
    return {
        "text": ask_over_tls(address, with_certificate, CASE_TIMEOUT_S),
        "refused_without_certificate": ask_over_tls(address, without_certificate, REFUSED_TIMEOUT_S) is None,
    }


def health(channel: grpc.Channel) -> Line:
    """Health of the server, of the service, and of a service that does not exist."""
    stub: Any = health_pb2_grpc.HealthStub(channel)  # its types know no methods

    def check(service: str) -> str:
        try:
            reply = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=CASE_TIMEOUT_S)
        except grpc.RpcError as failure:
            return str(failure.code().name)
        return health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)

    return {
        "overall": check(""),
        "service": check("ollmbridge.v1.ChatCompletionService"),
        "unknown": check("no.such.Service"),
    }


# Helpers of the cases


def build_request(text: str, *, model: str = MODEL) -> pb.CreateChatCompletionRequest:
    """Return a request with one message of the user."""
    request = pb.CreateChatCompletionRequest(model=model)
    request.messages.add(role="user", text=text)
    return request


def get_optional(message: Message, field: str) -> Any:
    """Return a field, or None if it is unset."""
    return getattr(message, field) if message.HasField(field) else None


def get_content(chunk: pb.StreamChatCompletionResponse) -> str:
    """Return the text that a chunk adds."""
    return "".join(choice.delta.content for choice in chunk.choices)


def expect_failure(stub: Stub, request: pb.CreateChatCompletionRequest, **options: Any) -> Any:
    """Make a call that must fail, and return its failure, which is also the call."""
    try:
        stub.CreateChatCompletion(request, timeout=CASE_TIMEOUT_S, **options)
    except grpc.RpcError as failure:
        return failure
    raise SystemExit(f"{request.model}: the call did not fail")


def find_detail(failure: Any, kind: type[Detail]) -> Detail:
    """Return the failure's detail of a type."""
    status = rpc_status.from_call(failure)
    for packed in status.details if status is not None else ():
        unpacked = kind()
        if packed.Unpack(unpacked):
            return unpacked
    raise SystemExit(f"the status has no {kind.DESCRIPTOR.full_name}: {status}")


def get_retry_after_s(failure: Any) -> float:
    """Return the wait that the failure asks for."""
    return float(find_detail(failure, rpc_pb2.RetryInfo).retry_delay.ToTimedelta().total_seconds())


def ask_over_tls(address: str, credentials: grpc.ChannelCredentials, timeout_s: float) -> str | None:
    """Return the answer of a call over TLS, or None if it fails."""
    with grpc.secure_channel(address, credentials) as channel:
        stub = pb_grpc.ChatCompletionServiceStub(channel)
        try:
            return stub.CreateChatCompletion(build_request("Hello"), timeout=timeout_s).choices[0].message.text
        except grpc.RpcError as failure:
            print(f"{address}: {failure.code().name}: {failure.details()}", file=sys.stderr)
            return None


def read_file(variable: str) -> bytes:
    """Read the file that an environment variable names."""
    return Path(os.environ[variable]).read_bytes()


if __name__ == "__main__":
    main()
