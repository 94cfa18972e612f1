"""Failures over real sockets, as a stock client sees them, in both methods."""

import asyncio
import json
from itertools import pairwise

import grpc
import pytest

from bridge.emulator import Emulator
from ollmbridge.v1.chat_pb2 import StreamOptions
from tests.kit.client import Failure, chat, scenario
from tests.kit.status_table import ENVELOPED, WITHOUT_ENVELOPE, Row
from tests.kit.statuses import count_sent_bytes
from tests.kit.upstreams import Peer, serve_answers, start_server
from tests.kit.waiting import eventually

METHODS = pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
USAGE = StreamOptions(include_usage=True)
OWN, UPSTREAM = "ollmbridge", "upstream.ollmbridge"


def name_row(row: Row) -> str:
    return f"{row.status}-{row.form}"


@METHODS
@pytest.mark.parametrize("row", ENVELOPED, ids=name_row)
async def test_envelope_with_a_status_becomes_the_tables_code_and_reason(bridge, row, stream):
    request = scenario(f"error?status={row.status}&envelope={row.form}&message=it+broke&type=odd_type&code=odd_code")
    failure = (await bridge.ask(request, stream=stream)).failure
    assert failure.verdict == row.verdict
    assert failure.message == "it broke"
    assert failure.upstream.message == "it broke"
    assert failure.upstream.http_status == row.status
    expected = {"httpStatus": str(row.status)}
    if row.form == "full":
        expected |= {"upstreamType": "odd_type", "upstreamCode": "odd_code"}
        assert (failure.upstream.type, failure.upstream.code) == ("odd_type", "odd_code")
    assert dict(failure.info.metadata) == expected
    assert failure.info.domain == (OWN if failure.reason == "INVALID_UPSTREAM_RESPONSE" else UPSTREAM)
    assert set(failure.details) == {"ErrorInfo", "RequestInfo", "UpstreamError"} | (
        {"ResourceInfo"} if failure.code == "NOT_FOUND" else set()
    )
    assert not failure.upstream.truncated


@METHODS
@pytest.mark.parametrize("row", WITHOUT_ENVELOPE, ids=name_row)
async def test_status_without_an_envelope_becomes_the_tables_code_and_reason(bridge, row, stream):
    request = scenario(f"error?status={row.status}&envelope={row.form}&message=it+broke")
    failure = (await bridge.ask(request, stream=stream)).failure
    assert failure.verdict == row.verdict
    assert failure.message.startswith("the upstream sent neither a completion nor an error envelope: HTTP ")
    assert failure.info.metadata["httpStatus"] == str(row.status)
    assert failure.upstream.body_excerpt == {"html": "<html><body><h1>it broke</h1></body></html>", "none": "{}"}.get(
        row.form, ""
    )


@METHODS
async def test_redirect_is_never_followed(bridge, emulator, stream):
    failure = (await bridge.ask(scenario("redirect?location=/v1/chat/completions"), stream=stream)).failure
    assert (failure.code, failure.reason) == ("INTERNAL", "INVALID_UPSTREAM_RESPONSE")
    assert len(emulator.exchanges) == 1


@METHODS
async def test_answer_that_comes_before_the_whole_request_is_sent_is_read(start_bridge, stream):
    answer = b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"

    async def serve(peer: Peer) -> None:
        await peer.read_head()
        await peer.write(answer)

    async with start_server(serve) as server:
        bridge = await start_bridge(upstream={"base_url": server.url})
        failure = (await bridge.ask(chat("x" * 3_000_000), stream=stream)).failure
    assert (failure.code, failure.reason) == ("INVALID_ARGUMENT", "UPSTREAM_INVALID_REQUEST")


# Details


@METHODS
async def test_invalid_parameter_becomes_a_field_violation(bridge, stream):
    failure = (await bridge.ask(scenario("error?status=400&param=messages[0].content"), stream=stream)).failure
    violations = failure.details["BadRequest"].field_violations
    assert [(each.field, each.description) for each in violations] == [("messages[0].content", "the provider failed")]
    assert failure.info.metadata["param"] == "messages[0].content"


RESOURCES = {
    "model": ({"model": "nobody"}, "model", "nobody"),
    "prefixed model": ({"model": "ollm::model_name::nobody"}, "model", "nobody"),
    "function": ({"model": "ollm::function_name::nobody"}, "function", "nobody"),
    "variant": ({"model": "ollm::function_name::hello", "ollm": {"variant_name": "v9"}}, "variant", "v9"),
}


@METHODS
@pytest.mark.parametrize(("fields", "kind", "name"), RESOURCES.values(), ids=RESOURCES)
async def test_not_found_names_the_requested_resource(bridge, fields, kind, name, stream):
    failure = (await bridge.ask(chat(**fields), stream=stream)).failure
    assert failure.code == "NOT_FOUND"
    resource = failure.details["ResourceInfo"]
    assert (resource.resource_type, resource.resource_name) == (kind, name)


@METHODS
async def test_exceeded_quota_becomes_a_quota_failure(bridge, stream):
    failure = (await bridge.ask(scenario("error?status=429&code=insufficient_quota"), stream=stream)).failure
    assert failure.reason == "UPSTREAM_RATE_LIMITED"
    assert failure.details["QuotaFailure"].violations[0].subject == "insufficient_quota"


@METHODS
async def test_envelope_is_returned_whole(bridge, stream):
    request = scenario("error?status=502&raw=1&type=server_error&code=31&param=p")
    upstream = (await bridge.ask(request, stream=stream)).failure.upstream
    assert (upstream.message, upstream.type, upstream.code, upstream.param) == (
        "the provider failed",
        "server_error",
        "31",
        "p",
    )
    assert json.loads(upstream.extra_json["ollm_raw_response"])[0]["provider_type"] == "emulator"


WAITS = {
    "seconds": ("retry_after=2", 2000, "2000"),
    "fraction": ("retry_after=0.25", 250, "250"),
    "zero": ("retry_after=0", 0, "0"),
    "milliseconds": ("retry_after_ms=1500", 1500, "1500"),
    "milliseconds before seconds": ("retry_after_ms=1500&retry_after=9", 1500, "1500"),
    "a minute": ("retry_after=60", 60_000, "60000"),
    "longer": ("retry_after=61", 61_000, "-1"),
    "a day": ("retry_after=86400", 86_400_000, "-1"),
}


@METHODS
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(("query", "wait_ms", "pushback"), WAITS.values(), ids=WAITS)
async def test_wait_becomes_retry_info_and_pushback(bridge, query, wait_ms, pushback, status, stream):
    failure = (await bridge.ask(scenario(f"error?status={status}&{query}"), stream=stream)).failure
    assert failure.details["RetryInfo"].retry_delay.ToMilliseconds() == wait_ms
    assert failure.trailers["grpc-retry-pushback-ms"] == pushback


async def test_wait_until_a_date_becomes_retry_info(bridge):
    failure = (await bridge.ask(scenario("error?status=503&retry_date_s=3600"))).failure
    assert 3_500_000 < failure.details["RetryInfo"].retry_delay.ToMilliseconds() <= 3_600_000


@METHODS
async def test_unreadable_wait_becomes_no_retry_info(bridge, stream):
    failure = (await bridge.ask(scenario("error?status=429&retry_after=soon"), stream=stream)).failure
    assert "RetryInfo" not in failure.details
    assert "grpc-retry-pushback-ms" not in failure.trailers


@METHODS
async def test_upstream_headers_are_returned_as_trailers(bridge, stream):
    metadata = (("x-request-id", "mine"),)
    answer = await bridge.ask(scenario("rate_limited"), stream=stream, metadata=metadata)
    assert answer.trailers["x-request-id"] == "mine"
    assert answer.trailers["x-ratelimit-limit-requests"] == "1000"
    assert answer.trailers["retry-after"] == "1"
    assert answer.failure.details["RequestInfo"].request_id == "mine"


# Size


def count_trailer_bytes(failure: Failure) -> int:
    code, _ = grpc.StatusCode[failure.code].value
    return count_sent_bytes(code, failure.message, failure.trailers.items())


@METHODS
@pytest.mark.parametrize("query", ["size=1000000", "size=1000000&param=messages&raw=1&retry_after=3"])
async def test_error_of_a_megabyte_of_chinese_is_truncated(bridge, query, stream):
    metadata = (("x-request-id", "r" * 1000),)
    answer = await bridge.ask(scenario(f"error?status=400&{query}"), stream=stream, metadata=metadata)
    failure = answer.failure
    assert (failure.code, failure.reason) == ("INVALID_ARGUMENT", "UPSTREAM_INVALID_REQUEST")
    assert failure.message == "错" * (1024 // 3)
    assert failure.upstream.truncated
    assert set(failure.upstream.message) == {"错"}
    assert count_trailer_bytes(answer.failure) < 6 * 1024
    assert ("RetryInfo" in failure.details) == ("retry_after" in query)


@METHODS
async def test_large_error_page_is_truncated(start_bridge, stream):
    page = b"<html>" + "页".encode() * 1_000_000
    error = b"HTTP/1.1 502 Bad Gateway\r\ncontent-type: text/html\r\ncontent-length: %d\r\n\r\n" % len(page) + page
    async with serve_answers(error) as server:
        bridge = await start_bridge(upstream={"base_url": server.url})
        answer = await bridge.ask(chat(), stream=stream)
    assert answer.failure.reason == "UPSTREAM_UNAVAILABLE"
    assert answer.failure.upstream.body_excerpt.startswith("<html>页页")
    assert answer.failure.upstream.truncated
    assert count_trailer_bytes(answer.failure) < 6 * 1024


@METHODS
async def test_list_of_a_thousand_violations_is_truncated(bridge, stream):
    request = chat(extra_json={f"x_{number}": "{" for number in range(1000)})
    answer = await bridge.ask(request, stream=stream)
    assert (answer.failure.code, answer.failure.reason) == ("INVALID_ARGUMENT", "INVALID_REQUEST")
    assert answer.failure.details["BadRequest"].field_violations[-1].description.endswith(" more")
    assert count_trailer_bytes(answer.failure) < 6 * 1024


# Keys


@METHODS
@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (401, ("UNAUTHENTICATED", "UPSTREAM_UNAUTHENTICATED")),
        (403, ("PERMISSION_DENIED", "UPSTREAM_PERMISSION_DENIED")),
    ],
)
async def test_refusal_of_the_bridges_own_key_is_not_the_callers_error(start_bridge, status, expected, stream):
    request = scenario(f"error?status={status}")
    own = (await (await start_bridge(upstream={"api_key": "own"})).ask(request, stream=stream)).failure
    assert (own.code, own.reason, own.info.domain) == ("INTERNAL", "CREDENTIALS_REJECTED", OWN)
    caller = (await (await start_bridge()).ask(request, stream=stream)).failure
    assert (caller.code, caller.reason, caller.info.domain) == (*expected, UPSTREAM)


@METHODS
async def test_keys_in_an_upstreams_message_are_redacted(bridge, stream):
    text = "Incorrect+API+key+provided:+sk-abcdef0123456789.+Bearer+abc.def+https://me:pw@host/"
    answer = await bridge.ask(scenario(f"error?status=401&message={text}&code=sk-abcdef0123456789"), stream=stream)
    assert answer.failure.code == "UNAUTHENTICATED"
    for secret in ("abcdef0123456789", "abc.def", "me:pw"):
        assert secret not in str(answer)


# The connection


@METHODS
async def test_refused_connection_is_unavailable(bridge, emulator, stream):
    await emulator.refuse()
    failure = (await bridge.ask(chat(), stream=stream)).failure
    assert (failure.code, failure.reason, failure.info.domain) == ("UNAVAILABLE", "UPSTREAM_UNREACHABLE", OWN)
    assert "UpstreamError" not in failure.details or stream
    await emulator.accept()
    assert (await bridge.ask(chat(), stream=stream)).failure is None


@METHODS
async def test_name_that_does_not_resolve_is_unavailable(start_bridge, stream):
    bridge = await start_bridge(upstream={"base_url": "http://gateway.invalid", "plaintext": True})
    failure = (await bridge.ask(chat(), stream=stream)).failure
    assert (failure.code, failure.reason) == ("UNAVAILABLE", "UPSTREAM_UNREACHABLE")


@METHODS
@pytest.mark.parametrize("name", ["reset?after=-1", "close", "reset?after=0"])
async def test_connection_lost_after_sending_is_aborted(bridge, emulator, name, stream):
    failure = (await bridge.ask(scenario(name), stream=stream)).failure
    assert (failure.code, failure.reason, failure.info.domain) == ("ABORTED", "UPSTREAM_DISCONNECTED", OWN)
    assert len(emulator.exchanges) == 1  # no call is retried


# A 2xx that is not a completion


TWO_HUNDREDS = {
    "html": ("not_json", "INTERNAL", "INVALID_UPSTREAM_RESPONSE"),
    "array": ("not_object", "INTERNAL", "INVALID_UPSTREAM_RESPONSE"),
    "no choices": ("no_choices", "INTERNAL", "INVALID_UPSTREAM_RESPONSE"),
    "garbage": ("garbage", "INTERNAL", "INVALID_UPSTREAM_RESPONSE"),
    "bomb": ("gzip?bomb=1", "INTERNAL", "UPSTREAM_RESPONSE_TOO_LARGE"),
    "headers": ("header_flood?count=1&size=200000", "INTERNAL", "INVALID_UPSTREAM_RESPONSE"),
    "cut": ("cut", "INTERNAL", "INVALID_UPSTREAM_RESPONSE"),
    "half chunk": ("half_chunk", "ABORTED", "UPSTREAM_DISCONNECTED"),
    "error": ("error_event", "INTERNAL", "UPSTREAM_STREAM_ERROR"),
    "error of a known type": ("error_event?type=rate_limit_error", "RESOURCE_EXHAUSTED", "UPSTREAM_STREAM_ERROR"),
    "error of a known code": ("error_event?code=model_not_found", "NOT_FOUND", "UPSTREAM_STREAM_ERROR"),
    "error of a number": ("error_event?code=503", "UNAVAILABLE", "UPSTREAM_STREAM_ERROR"),
    "error of a status": ("error_event?status=401", "UNAUTHENTICATED", "UPSTREAM_STREAM_ERROR"),
    "error of one text": ("error_event?flat=1", "INTERNAL", "UPSTREAM_STREAM_ERROR"),
}


@pytest.mark.parametrize(("name", "code", "reason"), TWO_HUNDREDS.values(), ids=TWO_HUNDREDS)
async def test_unary_200_that_is_not_a_completion_fails(bridge, name, code, reason):
    failure = (await bridge.ask(scenario(name))).failure
    assert (failure.code, failure.reason) == (code, reason)


STREAM_200S = {
    "html": ("not_json", "INTERNAL", "INVALID_UPSTREAM_RESPONSE"),
    "a whole completion": ("wrong_type", "INTERNAL", "INVALID_UPSTREAM_RESPONSE"),
    "error": ("wrong_type?in_200=1", "INTERNAL", "UPSTREAM_STREAM_ERROR"),
    "bomb": ("gzip?bomb=1", "INTERNAL", "UPSTREAM_RESPONSE_TOO_LARGE"),
    "no choices": ("no_choices", "ABORTED", "INCOMPLETE_COMPLETION"),
}


@pytest.mark.parametrize(("name", "code", "reason"), STREAM_200S.values(), ids=STREAM_200S)
async def test_200_that_is_not_a_stream_fails(bridge, name, code, reason):
    failure = (await bridge.ask(scenario(name), stream=True)).failure
    assert (failure.code, failure.reason) == (code, reason)


# Streams that break


BROKEN = {
    "cut": ("cut?after=3", 3, "ABORTED", "INCOMPLETE_COMPLETION"),
    "cut before all": ("cut?after=0", 0, "ABORTED", "INCOMPLETE_COMPLETION"),
    "reset": ("reset?after=3", 3, "ABORTED", "UPSTREAM_DISCONNECTED"),
    "half chunk": ("half_chunk?after=3", 3, "ABORTED", "UPSTREAM_DISCONNECTED"),
    "closed": ("close?after=3", 3, "ABORTED", "UPSTREAM_DISCONNECTED"),
    "done without finish": ("no_finish", 6, "ABORTED", "INCOMPLETE_COMPLETION"),
    "done alone": ("done_only", 0, "ABORTED", "INCOMPLETE_COMPLETION"),
    "garbage": ("garbage?after=3", 3, "INTERNAL", "INVALID_UPSTREAM_RESPONSE"),
    "array": ("not_object", 0, "INTERNAL", "INVALID_UPSTREAM_RESPONSE"),
    "error event": ("error_event?after=3", 3, "INTERNAL", "UPSTREAM_STREAM_ERROR"),
    "named error event": ("error_event?after=3&named=1", 3, "INTERNAL", "UPSTREAM_STREAM_ERROR"),
    "flat error event": ("error_event?after=3&flat=1", 3, "INTERNAL", "UPSTREAM_STREAM_ERROR"),
    "error event of a known type": (
        "error_event?after=3&type=rate_limit_error",
        3,
        "RESOURCE_EXHAUSTED",
        "UPSTREAM_STREAM_ERROR",
    ),
    "error event of a known code": (
        "error_event?code=insufficient_quota",
        2,
        "RESOURCE_EXHAUSTED",
        "UPSTREAM_STREAM_ERROR",
    ),
    "error event of a status": ("error_event?status=429", 2, "RESOURCE_EXHAUSTED", "UPSTREAM_STREAM_ERROR"),
    "error event of a 503 at once": ("error_event?after=0&status=503", 0, "UNAVAILABLE", "UPSTREAM_STREAM_ERROR"),
    "error event of a 503 later": ("error_event?after=1&status=503", 1, "ABORTED", "UPSTREAM_STREAM_ERROR"),
}


@pytest.mark.parametrize(("name", "delivered", "code", "reason"), BROKEN.values(), ids=BROKEN)
async def test_incomplete_stream_fails_after_its_last_chunk(bridge, name, delivered, code, reason):
    answer = await bridge.ask(scenario(name), stream=True)
    assert (answer.failure.code, answer.failure.reason) == (code, reason)
    assert len(answer.messages) == delivered
    assert answer.failure.upstream.chunks_delivered == delivered
    assert answer.failure.upstream.http_status == 200
    record = await bridge.records.next()
    assert (record.code, record.reason, record.chunks) == (code, reason, delivered)


async def test_error_event_keeps_its_message(bridge):
    failure = (await bridge.ask(scenario("error_event?message=it+broke&type=odd&code=7&raw=1"), stream=True)).failure
    assert failure.message == failure.upstream.message == "it broke"
    assert dict(failure.info.metadata) == {"httpStatus": "200", "upstreamType": "odd", "upstreamCode": "7"}
    assert failure.info.domain == UPSTREAM
    assert failure.upstream.extra_json["ollm_raw_chunk"] == '"{not json"'


async def test_failure_includes_the_usage_that_came_before_it(bridge):
    failure = (await bridge.ask(scenario("no_finish", stream_options=USAGE), stream=True)).failure
    usage = failure.upstream.partial_usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (2, 4)


@pytest.mark.parametrize("name", ["reset?after=100", "half_chunk?after=100", "close?after=100"])
async def test_unfinished_stream_of_any_length_fails(bridge, name):
    answer = await bridge.ask(scenario(name), stream=True)
    assert answer.failure.reason == "UPSTREAM_DISCONNECTED"


async def test_connection_that_breaks_after_the_finish_is_no_failure(start_bridge):
    events = (
        b'data: {"choices":[{"index":0,"delta":{"content":"all"},"finish_reason":"stop"}]}\n\n'
        b'data: {"choices":[],"usage":{"total_tokens":3}}\n\n'
    )
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n%X\r\n%b\r\nFF\r\n"
    async with serve_answers(head % (len(events), events)) as server:
        bridge = await start_bridge(upstream={"base_url": server.url})
        answer = await bridge.ask(chat(stream_options=USAGE), stream=True)
    assert answer.text == "all"
    assert answer.chunks[1].usage.total_tokens == 3


@pytest.mark.parametrize(("limit", "code"), [(200_000, "OK"), (100_000, "INTERNAL")])
async def test_event_above_the_limit_fails(start_bridge, limit, code):
    bridge = await start_bridge(upstream={"event_bytes_max": limit})
    answer = await bridge.ask(scenario("huge_event?size=120000"), stream=True)
    assert (answer.failure.code if answer.failure else "OK") == code
    if answer.failure:
        assert answer.failure.reason == "UPSTREAM_RESPONSE_TOO_LARGE"


# Requests that the bridge itself refuses


@METHODS
async def test_every_violation_of_a_request_is_named(bridge, emulator, stream):
    request = chat(model="", n=2, max_tokens=-1, extra_json={"stream": "true", "temperature": "1e", "n": "2"})
    request.messages.add(text="no role")
    failure = (await bridge.ask(request, stream=stream)).failure
    assert (failure.code, failure.reason, failure.info.domain) == ("INVALID_ARGUMENT", "INVALID_REQUEST", OWN)
    assert {each.field for each in failure.details["BadRequest"].field_violations} == {
        "model",
        "n",
        "max_tokens",
        "messages[1].role",
        'extra_json["stream"]',
        'extra_json["temperature"]',
        'extra_json["n"]',
    }
    assert emulator.exchanges == []


@METHODS
async def test_undecodable_bytes_are_an_invalid_argument(bridge, stream):
    method = "StreamChatCompletion" if stream else "CreateChatCompletion"
    path = f"/ollmbridge.v1.ChatCompletionService/{method}"
    call = bridge.channel.unary_stream(path)(b"\x0a\xff") if stream else bridge.channel.unary_unary(path)(b"\x0a\xff")
    assert (await call.code()).name == "INVALID_ARGUMENT"
    assert b"UNDECODABLE_REQUEST" in dict(await call.trailing_metadata())["grpc-status-details-bin"]


BAD_METADATA = {
    "65 entries": [(f"x-{number}", "1") for number in range(65)],
    "9 KB in one": [("x-long", "x" * 9000)],
    "9 KB in many": [(f"x-{number}", "x" * 300) for number in range(30)],
    "30 KB": [("x-long", "x" * 30_000)],
    "two authorizations": [("authorization", "Bearer a"), ("authorization", "Bearer b")],
}


@METHODS
@pytest.mark.parametrize("metadata", BAD_METADATA.values(), ids=BAD_METADATA)
async def test_bad_metadata_is_an_invalid_argument(bridge, emulator, metadata, stream):
    failure = (await bridge.ask(chat(), stream=stream, metadata=metadata)).failure
    assert (failure.code, failure.reason) == ("INVALID_ARGUMENT", "INVALID_METADATA")
    assert emulator.exchanges == []


async def test_metadata_just_within_its_limits_passes(bridge):
    metadata = [(f"x-{number:02}", "x" * 120) for number in range(60)]
    for _ in range(5):
        assert (await bridge.ask(chat(), metadata=metadata)).failure is None


@METHODS
async def test_request_above_the_size_limit_is_refused_by_grpc(start_bridge, emulator, stream):
    bridge = await start_bridge(request_bytes_max=10_000)
    assert (await bridge.ask(chat("x" * 9_000), stream=stream)).failure is None
    failure = (await bridge.ask(chat("x" * 11_000), stream=stream)).failure
    assert failure.code == "RESOURCE_EXHAUSTED"
    assert len(emulator.exchanges) == 1


@METHODS
async def test_call_above_the_limit_of_calls_is_refused_while_the_others_run(start_bridge, emulator, stream):
    bridge = await start_bridge(calls_max=1)
    first = bridge.stub.CreateChatCompletion(scenario("stall?headers=0"))
    exchange = await emulator.next_exchange()
    failure = (await bridge.ask(chat(), stream=stream)).failure
    assert (failure.code, failure.reason, failure.info.domain) == ("RESOURCE_EXHAUSTED", "OVERLOADED", OWN)
    assert failure.details["RetryInfo"].retry_delay.ToMilliseconds() > 0
    assert int(failure.trailers["grpc-retry-pushback-ms"]) > 0
    first.cancel()
    await exchange.wait_closed()
    assert (await bridge.records.next()).code == "CANCELLED"  # the refusal is counted, and has no record
    assert (await bridge.ask(chat(), stream=stream)).failure is None


# A stock client's retries


# A backoff of 1 ms or so can hang grpcio 1.83.2 itself: it never starts the next attempt.
RETRIES = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 3,
                    "initialBackoff": "0.05s",
                    "maxBackoff": "0.05s",
                    "backoffMultiplier": 1,
                    "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
                },
            }
        ]
    }
)
ATTEMPTS = {
    "without a wait": ("error?status=429", 3),
    "a short wait": ("error?status=429&retry_after=0.15", 3),
    "a wait that is too long": ("error?status=503&retry_after=300", 1),
    "a provider that failed": ("provider_failed", 3),
    "a call that may have run": ("close", 1),
    "another failure": ("error?status=500", 1),
}


@METHODS
@pytest.mark.parametrize(("name", "attempts"), ATTEMPTS.values(), ids=ATTEMPTS)
async def test_stock_client_retries_by_the_code_and_the_pushback(start_bridge, emulator, name, attempts, stream):
    bridge = await start_bridge(channel={"grpc.service_config": RETRIES})
    assert (await bridge.ask(scenario(name), stream=stream)).failure is not None
    assert len(emulator.exchanges) == attempts
    if "0.15" in name:
        times = [exchange.received_at for exchange in emulator.exchanges]
        assert all(later - earlier > 0.1 for earlier, later in pairwise(times))  # the policy alone waits 50 ms at most


async def test_stock_client_retries_a_stream_only_before_its_first_chunk(start_bridge, emulator):
    bridge = await start_bridge(channel={"grpc.service_config": RETRIES})
    await bridge.ask(scenario("error_event?after=0&status=503"), stream=True)
    assert len(emulator.exchanges) == 3
    await bridge.ask(scenario("error_event?after=1&status=429"), stream=True)
    assert len(emulator.exchanges) == 4


async def test_retry_succeeds_when_the_gateway_accepts_connections_again(start_bridge):
    async with Emulator() as emulator:
        await emulator.refuse()
        bridge = await start_bridge(
            channel={"grpc.service_config": RETRIES.replace("0.05s", "0.3s")}, upstream={"base_url": emulator.url}
        )
        call = asyncio.create_task(bridge.ask(chat()))
        await eventually(lambda: bridge.records.all)
        await emulator.accept()
        assert (await call).failure is None
