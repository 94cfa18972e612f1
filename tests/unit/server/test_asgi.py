"""Tests of bridge/server/asgi.py: which request is a call, and of which protocol. test_asgi_rpc.py has how it runs."""

import json

import pytest
from structlog.testing import capture_logs

from bridge.core.errors import BridgeError, Code
from bridge.core.status import to_grpc_status
from ollmbridge.v1 import error_details_pb2 as details_pb2
from tests.kit.web import SERVICE, split_frames
from tests.unit.server.asgi_bench import TRAILERS, UNARY, Bench, Request
from tests.unit.server.fake_service import ENDS, SECRET, Service, fail_with, succeed


async def test_unary_call_is_answered_with_its_length():
    answer = await Bench(Service(succeed)).request().run()
    assert answer.status == 200
    assert json.loads(answer.body) == {"id": "whole"}
    assert answer.headers["content-length"] == str(len(answer.body))
    assert answer.headers["trailer-x-request-id"] == "r-1"


async def test_stream_begins_with_the_headers_and_ends_with_the_status():
    answer = await Bench(Service(succeed, chunks=3)).request(stream=True).run()
    assert answer.headers["x-request-id"] == "r-1"
    assert [flags for flags, _ in split_frames(answer.body)] == [0, 0, 0, 2]
    assert answer.is_whole


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
async def test_grpc_is_spoken_where_the_server_sends_trailers(stream):
    bench = Bench(Service(succeed, chunks=2))
    headers = {"content-type": "application/grpc", "te": "trailers"}
    answer = await bench.request("grpc-web", stream=stream, headers=headers, extensions=TRAILERS).run()
    assert answer.events[0]["trailers"] is True
    assert len(split_frames(answer.body)) == (2 if stream else 1)
    assert answer.events[-1]["type"] == "http.response.trailers"
    assert (b"grpc-status", b"0") in answer.events[-1]["headers"]
    assert answer.events[-2]["more_body"] is False


async def test_grpc_is_refused_where_it_does_not():
    answer = await Bench(Service(succeed)).request("grpc-web", headers={"content-type": "application/grpc"}).run()
    assert answer.status == 415
    assert "application/grpc," not in answer.headers["accept-post"]


KINDS = {
    "none": "",
    "curl's": "application/x-www-form-urlencoded",
    "text": "text/plain",
    "of a stream": "application/connect+json",
    "unknown format": "application/grpc-web+json",
    "other charset": "application/json; charset=latin-1",
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
async def test_other_content_type_is_refused_with_those_that_are_taken(kind):
    answer = await Bench(Service(succeed)).request(headers={"content-type": kind}).run()
    assert answer.status == 415
    assert "application/json" in answer.body.decode()


@pytest.mark.parametrize(
    "kind", ["Application/JSON", "application/json;charset=UTF-8", 'application/json; charset="utf-8"']
)
async def test_content_type_may_be_written_otherwise(kind):
    assert (await Bench(Service(succeed)).request(headers={"content-type": kind}).run()).status == 200


async def test_other_path_is_not_found():
    answer = await Request(Bench(Service(succeed)).application, "/", {}).run()
    assert answer.status == 404
    assert f"/{SERVICE}/{UNARY}" in answer.body.decode()


@pytest.mark.parametrize("method", ["GET", "PUT", "OPTIONS", "HEAD"])
async def test_other_method_is_not_allowed(method):
    answer = await Bench(Service(succeed)).request(method=method).run()
    assert (answer.status, answer.headers["allow"]) == (405, "POST")


async def test_websocket_is_closed_and_lifespan_is_answered():
    application = Bench(Service(succeed)).application
    sent, coming = [], iter(["lifespan.startup", "lifespan.shutdown"])

    async def receive():
        return {"type": next(coming)}

    async def send(event):
        sent.append(event["type"])

    await application({"type": "lifespan"}, receive, send)
    await application({"type": "websocket"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete", "websocket.close"]


@pytest.mark.parametrize("end", [name for name in ENDS if name != "ok"])
async def test_failure_is_a_status_without_a_text_of_others(end):
    answer = await Bench(Service(ENDS[end])).request().run()
    assert answer.status >= 400
    assert json.loads(answer.body)["details"]
    assert SECRET.encode() not in answer.body


async def test_refused_call_is_not_looked_at():
    bench = Bench(Service(succeed))
    refusal = BridgeError(Code.RESOURCE_EXHAUSTED, details_pb2.ERROR_REASON_OVERLOADED, "late")
    bench.boundary.shedding.refuse = lambda _method: to_grpc_status(refusal)  # type: ignore[method-assign]
    answer = await bench.request(headers={"connect-timeout-ms": "no number"}).run()
    assert (answer.status, json.loads(answer.body)["message"]) == (429, "late")
    assert bench.records.all == []


async def test_head_that_cannot_be_read_ends_the_call():
    answer = await Bench(Service(succeed)).request(headers={"connect-timeout-ms": "soon"}).run()
    assert (answer.status, json.loads(answer.body)["code"]) == (400, "invalid_argument")
    answer = await Bench(Service(succeed)).request(headers={"content-encoding": "br"}).run()
    assert (answer.status, answer.headers["accept-encoding"]) == (501, "gzip,deflate")


async def test_origin_of_another_page_is_refused_before_the_path_is_looked_at():
    application = Bench(Service(fail_with(AssertionError())), web_allowed_origins=["https://a.example"]).application
    for method in ("POST", "OPTIONS", "GET"):
        headers = {"origin": "https://b.example", "access-control-request-method": "POST"}
        answer = await Request(application, f"/{SERVICE}/{UNARY}", headers, method=method).run()
        assert answer.status == 403
        assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_refused_origin_is_logged_once_for_many():
    application = Bench(Service(succeed), web_allowed_origins=["https://a.example"]).application
    with capture_logs() as lines:
        for number in range(20):
            await Request(application, "/", {"origin": f"https://{number}-sk-{'k' * 40}.example"}).run()
    (line,) = lines
    assert (line["log_level"], line["origin"][:10]) == ("warning", "https://0-")
    assert "kkkkkkkkkk" not in line["origin"]


async def test_pages_can_read_every_answer_also_a_refusal():
    bench = Bench(Service(succeed), web_allowed_origins=["https://a.example"])
    for headers in ({}, {"content-type": "text/plain"}):
        answer = await bench.request(headers=headers | {"origin": "https://a.example"}).run()
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
