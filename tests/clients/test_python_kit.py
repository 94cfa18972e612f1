"""clients/python/ollmbridge_client: the vectors, real calls, TLS from files, and a large answer."""

import asyncio
import base64
from typing import Any

import grpc
import pytest

from ollmbridge.v1.chat_completion_service_pb2_grpc import ChatCompletionServiceStub
from ollmbridge_client import Accumulator, Tls, accumulate, connect, connect_async, failure
from tests.clients.vectors import write_json
from tests.kit.certificates import Certificates
from tests.kit.client import chat, scenario
from tests.kit.vectors import decode_chunks, read_client_vectors
from tests.kit.waiting import WAIT_S

ACCUMULATE = {vector["name"]: vector for vector in read_client_vectors("accumulate")}
FAILURE = {vector["name"]: vector for vector in read_client_vectors("failure")}


class Error:
    """A failed call, as a library reports it."""

    def __init__(self, vector: dict[str, Any]) -> None:
        self.vector = vector

    def code(self):
        return next(code for code in grpc.StatusCode if code.value[0] == self.vector["code"])

    def details(self):
        return self.vector["message"]

    def trailing_metadata(self):
        packed = base64.b64decode(self.vector["details"])
        return (("x-request-id", "r"), *((("grpc-status-details-bin", packed),) if packed else ()))


def describe(error) -> dict[str, Any]:
    """Return what a vector expects of a failure."""
    found = failure(error)
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


@pytest.mark.parametrize("name", ACCUMULATE)
def test_chunks_make_up_the_response(name):
    vector = ACCUMULATE[name]
    assert write_json(accumulate(decode_chunks(vector))) == vector["response"]


@pytest.mark.parametrize("name", ACCUMULATE)
def test_response_so_far_changes_nothing(name):
    vector = ACCUMULATE[name]
    accumulator = Accumulator()
    for chunk in decode_chunks(vector):
        accumulator.build()
        accumulator.add(chunk)
    assert write_json(accumulator.build()) == write_json(accumulator.build()) == vector["response"]


@pytest.mark.parametrize("name", FAILURE)
def test_status_says_what_happened(name):
    assert describe(Error(FAILURE[name])) == FAILURE[name]["failure"]


def test_status_without_trailers_is_a_failure():
    class BareError(Error):
        def trailing_metadata(self):
            return None

    assert failure(BareError(FAILURE["no-details"])).code == "UNAVAILABLE"


# Real calls


async def test_stream_makes_up_the_unary_answer(bridge):
    async with connect_async(bridge.address) as channel:
        stub = ChatCompletionServiceStub(channel)
        request = chat("What is the weather in Paris?")
        tool = request.tools.add().function
        tool.name, tool.parameters_json = "get_weather", "{}"
        request.stream_options.include_usage = True
        unary = await stub.CreateChatCompletion(request, timeout=WAIT_S)
        accumulator = Accumulator()
        async for chunk in stub.StreamChatCompletion(request, timeout=WAIT_S):
            accumulator.add(chunk)
    stream = accumulator.build()
    for each in (unary, stream):
        each.ClearField("id")
        each.ClearField("created")
        each.ClearField("episode_id")
    assert stream == unary


def ask(address, request, **options):
    """Make a call in a thread, by the kit's channel of grpc. Return the reply, or the error."""
    with connect(address, **options) as channel:
        try:
            return ChatCompletionServiceStub(channel).CreateChatCompletion(request, timeout=WAIT_S)
        except grpc.RpcError as error:
            return error


async def test_answer_above_grpcs_own_limit_arrives(bridge):
    reply = await asyncio.to_thread(ask, bridge.address, scenario("big?size=10000000"))
    assert len(reply.choices[0].message.text) > 4 * 1024 * 1024


async def test_options_replace_those_of_the_kit(bridge):
    options = [("grpc.max_receive_message_length", 1024)]
    error = await asyncio.to_thread(ask, bridge.address, scenario("big?size=10000"), options=options)
    assert failure(error).code == "RESOURCE_EXHAUSTED"
    assert failure(error).reason == ""  # grpc's own


@pytest.mark.parametrize("is_async", [False, True], ids=["grpc", "grpc.aio"])
async def test_failed_call_is_read_and_what_is_safe_is_retried(is_async, bridge, emulator):
    request = scenario("rate_limited?retry_after_ms=10")
    if is_async:
        async with connect_async(bridge.address) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                await ChatCompletionServiceStub(channel).CreateChatCompletion(request, timeout=WAIT_S)
            found = failure(caught.value)
    else:
        found = failure(await asyncio.to_thread(ask, bridge.address, request))
    assert (found.code, found.reason, found.retry_after_s) == ("RESOURCE_EXHAUSTED", "UPSTREAM_RATE_LIMITED", 0.01)
    assert (found.upstream_words, found.upstream.http_status) == ("rate limit exceeded", 429)
    assert found.request_id
    assert len(emulator.exchanges) == 4


async def test_request_above_grpcs_own_buffer_is_retried(bridge, emulator):
    request = scenario("flaky?times=1&status=503")
    request.messages[0].text = "x" * 3_000_000
    reply = await asyncio.to_thread(ask, bridge.address, request)
    assert reply.choices[0].finish_reason == "stop"
    assert len(emulator.exchanges) == 2


async def test_tls_comes_from_files(start_bridge, tmp_path):
    certificates = Certificates(tmp_path)
    bridge = await start_bridge(tls={**certificates.settings, "client_ca_file": certificates.ca_file})
    options = {"options": [("grpc.ssl_target_name_override", "localhost")]}
    request = chat("Hi")
    tls = Tls(ca=certificates.ca_file, cert=str(certificates.cert_file), key=certificates.key_file)
    assert (await asyncio.to_thread(ask, bridge.address, request, tls=tls, **options)).choices
    async with connect_async(bridge.address, tls, **options) as channel:
        assert (await ChatCompletionServiceStub(channel).CreateChatCompletion(request, timeout=WAIT_S)).choices


@pytest.mark.parametrize("tls", [None, Tls()], ids=["plain text", "the system's authorities"])
async def test_tls_that_does_not_fit_is_a_failure(tls, start_bridge, tmp_path):
    bridge = await start_bridge(tls=Certificates(tmp_path).settings)
    options = [("grpc.ssl_target_name_override", "localhost"), ("grpc.enable_retries", 0)] if tls else []
    error = await asyncio.to_thread(ask, bridge.address, chat("Hi"), tls=tls, options=options)
    assert failure(error).code == "UNAVAILABLE"


def test_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pem"):
        connect("localhost:1", Tls(ca=tmp_path / "none.pem"))
