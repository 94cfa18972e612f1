"""The cases of ../CASES.md, with grpcio: `python client.py [CASE …]`. The environment has the bridge's address."""

import base64
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ollmbridge.v1 import chat_completion_service_pb2 as pb
from ollmbridge.v1 import chat_completion_service_pb2_grpc as pb_grpc
from ollmbridge_client import Accumulator, Failure, Tls, accumulate, connect, failure, from_openai, to_openai

Stub: TypeAlias = "pb_grpc.ChatCompletionServiceStub"
Line: TypeAlias = dict[str, Any]

MODEL = "near_qwen3_30b"
CASE_TIMEOUT_S = 60
REFUSED_TIMEOUT_S = 5
LARGE = 3_000_000
WEATHER_SCHEMA = '{"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]}'
ANSWER_SCHEMA = (
    '{"type": "object", "required": ["zulu", "alpha"], "properties": '
    '{"zulu": {"type": "integer", "maximum": 9007199254740993}, "alpha": {"type": "string"}}}'
)


def main() -> None:
    """Run the named cases, or all, and print a line for each."""
    address = os.environ.get("BRIDGE_ADDRESS", "127.0.0.1:50051")
    with connect(address) as channel:
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
            "large_answer": lambda: large_answer(stub),
            "accumulate": accumulate_vectors,
            "failure": read_failures,
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
    accumulator = Accumulator()
    for chunk in stub.StreamChatCompletion(request, timeout=CASE_TIMEOUT_S):
        contents += [get_optional(choice.delta, "content") for choice in chunk.choices]
        accumulator.add(chunk)
    reply = accumulator.build()
    return {
        "contents": contents,
        "text": reply.choices[0].message.text,
        "finish_reason": reply.choices[0].finish_reason,
        "total_tokens": reply.usage.total_tokens,
    }


def tools(stub: Stub) -> Line:
    """A tool call: join its fragments, and send it back with the tool's result. Requests are OpenAI's dicts here."""
    function = {
        "name": "get_weather",
        "description": "The weather at a place.",
        "parameters": json.loads(WEATHER_SCHEMA),
    }
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    body = {"model": MODEL, "messages": messages, "tools": [{"type": "function", "function": function}]}
    chunks = list(stub.StreamChatCompletion(from_openai(body), timeout=CASE_TIMEOUT_S))
    (choice,) = accumulate(chunks).choices

    messages.append(choice.message)
    for call in choice.message.tool_calls:
        location = json.loads(call.function.arguments)["location"]
        messages.append({"role": "tool", "tool_call_id": call.id, "content": f"21 degrees in {location}"})
    reply = to_openai(stub.CreateChatCompletion(from_openai(body), timeout=CASE_TIMEOUT_S))
    return {
        "fragments": sum(len(each.delta.tool_calls) for chunk in chunks for each in chunk.choices),
        "tool_calls": [
            {"id": call["id"], "name": call["function"]["name"], "arguments": call["function"]["arguments"]}
            for call in to_openai(choice.message)["tool_calls"]
        ],
        "finish_reason": choice.finish_reason,
        "text": reply["choices"][0]["message"]["content"],
    }


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
    error = expect_failure(stub, build_request("Hello", model=model), metadata=(("x-request-id", "clients-error"),))
    found = failure(error)
    return {
        "code": found.code,
        "message": found.message,
        "error_info": {"reason": found.reason, "domain": found.domain, "metadata": found.metadata},
        "retry_after_s": found.retry_after_s,
        "field_violations": [{"field": field, "description": description} for field, description in found.violations],
        "request_id": found.request_id,
        "upstream_error": {
            "http_status": found.upstream.http_status,
            "message": get_optional(found.upstream, "message"),
            "type": get_optional(found.upstream, "type"),
            "code": get_optional(found.upstream, "code"),
            "param": get_optional(found.upstream, "param"),
            "extra_json": dict(found.upstream.extra_json),
            "truncated": found.upstream.truncated,
        },
    }


def large_error(stub: Stub) -> Line:
    """A failure whose message is larger than trailers may be."""
    found = failure(expect_failure(stub, build_request("Hello", model="scenario::error?status=500&size=8192")))
    return {
        "code": found.code,
        "reason": found.reason,
        "truncated": found.upstream.truncated,
        "message_whole": set(found.message) == {"错"},
        "upstream_message_whole": set(found.upstream_words) == {"错"},
    }


def deadline(stub: Stub) -> Line:
    """A stream that stalls, and a deadline."""
    started_s = time.monotonic()
    text, code = "", "OK"
    try:
        for chunk in stub.StreamChatCompletion(build_request("Hello", model="scenario::stall?after=2"), timeout=1):
            text += get_content(chunk)
    except grpc.RpcError as error:
        code = failure(error).code
    return {"text": text, "code": code, "within": 0.9 <= time.monotonic() - started_s < 5}


def cancel(stub: Stub) -> Line:
    """Cancel a stream after its third chunk."""
    call = stub.StreamChatCompletion(build_request("Hello", model="scenario::stall?after=3"), timeout=CASE_TIMEOUT_S)
    text = "".join(get_content(next(call)) for _ in range(3))
    call.cancel()
    return {"text": text, "code": call.code().name}


def retry(stub: Stub) -> Line:
    """Refusals that the service config retries, of a large request too, and one that it does not retry."""
    flaky = build_request("Hello", model="scenario::flaky?times=2&status=429&retry_after_ms=400")
    reply = stub.CreateChatCompletion(flaky, timeout=30)
    large = build_request("x" * LARGE, model="scenario::flaky?times=1&status=503")
    large_reply = stub.CreateChatCompletion(large, timeout=30)
    found = failure(expect_failure(stub, build_request("Hello", model="scenario::rate_limited?retry_after=61")))
    return {
        "text": reply.choices[0].message.text,
        "large": len(large_reply.choices[0].message.text),
        "given_up": found.code,
        "retry_after_s": found.retry_after_s,
    }


def tls() -> Line:
    """TLS, with the server's authority and without it."""
    address = os.environ["BRIDGE_TLS_ADDRESS"]
    return {
        "text": ask_over_tls(address, Tls(ca=os.environ["CA_FILE"]), CASE_TIMEOUT_S),
        "refused_untrusted": ask_over_tls(address, Tls(), REFUSED_TIMEOUT_S) is None,
    }


def mtls() -> Line:
    """TLS with a client certificate, and without one."""
    address, ca = os.environ["BRIDGE_MTLS_ADDRESS"], os.environ["CA_FILE"]
    with_certificate = Tls(ca, os.environ["CERT_FILE"], os.environ["KEY_FILE"])
    return {
        "text": ask_over_tls(address, with_certificate, CASE_TIMEOUT_S),
        "refused_without_certificate": ask_over_tls(address, Tls(ca), REFUSED_TIMEOUT_S) is None,
    }


def health(channel: grpc.Channel) -> Line:
    """Health of the server, of the service, and of a service that does not exist."""
    stub: Any = health_pb2_grpc.HealthStub(channel)  # its types know no methods

    def check(service: str) -> str:
        try:
            reply = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=CASE_TIMEOUT_S)
        except grpc.RpcError as error:
            return failure(error).code
        return health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)

    return {
        "overall": check(""),
        "service": check("ollmbridge.v1.ChatCompletionService"),
        "unknown": check("no.such.Service"),
    }


def large_answer(stub: Stub) -> Line:
    """An answer above the 4 MiB that grpc receives by default."""
    request = build_request("Hello", model="scenario::big?size=10000000")
    reply = stub.CreateChatCompletion(request, timeout=CASE_TIMEOUT_S)
    request.model = "scenario::huge_event?size=10000000"
    streamed = accumulate(stub.StreamChatCompletion(request, timeout=CASE_TIMEOUT_S))
    return {"characters": len(reply.choices[0].message.text), "streamed": len(streamed.choices[0].message.text)}


def accumulate_vectors() -> Line:
    """The responses that the kit makes of the vectors' chunks."""
    responses = {}
    for vector in read_vectors("accumulate"):
        chunks = (pb.StreamChatCompletionResponse.FromString(base64.b64decode(data)) for data in vector["chunks"])
        responses[vector["name"]] = base64.b64encode(accumulate(chunks).SerializeToString()).decode()
    return {"responses": responses}


def read_failures() -> Line:
    """What the kit reads in the vectors' statuses."""
    return {"failures": {vector["name"]: describe(failure(Recorded(vector))) for vector in read_vectors("failure")}}


def describe(found: Failure) -> Line:
    """Return what is printed of a failure."""
    return {
        "code": found.code,
        "message": found.message,
        "reason": found.reason,
        "domain": found.domain,
        "retry_after_s": found.retry_after_s,
        "violations": [{"field": field, "description": description} for field, description in found.violations],
        "request_id": found.request_id,
        "http_status": found.upstream.http_status,
        "upstream_words": found.upstream_words,
    }


class Recorded:
    """A vector in the place of the grpc.RpcError of a call."""

    def __init__(self, vector: dict[str, Any]) -> None:
        self._vector = vector

    def code(self) -> grpc.StatusCode:
        """The vector's code."""
        return next(code for code in grpc.StatusCode if code.value[0] == self._vector["code"])

    def details(self) -> str:
        """The vector's message."""
        return str(self._vector["message"])

    def trailing_metadata(self) -> list[tuple[str, bytes]]:
        """The vector's details, in their trailer."""
        return [("grpc-status-details-bin", base64.b64decode(self._vector["details"]))]


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
    except grpc.RpcError as error:
        return error
    raise SystemExit(f"{request.model}: the call did not fail")


def ask_over_tls(address: str, tls: Tls, timeout_s: float) -> str | None:
    """Return the answer of a call over TLS, or None if it fails."""
    with connect(address, tls) as channel:
        stub = pb_grpc.ChatCompletionServiceStub(channel)
        try:
            return stub.CreateChatCompletion(build_request("Hello"), timeout=timeout_s).choices[0].message.text
        except grpc.RpcError as error:
            print(f"{address}: {failure(error)}", file=sys.stderr)
            return None


def read_vectors(kind: str) -> list[dict[str, Any]]:
    """Read one of the files of ../vectors."""
    folder = Path(os.environ.get("VECTORS", "../vectors"))
    lines = (folder / f"{kind}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


if __name__ == "__main__":
    main()
