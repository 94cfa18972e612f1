"""The table: a scenario, and the steps that it must send, to the byte, in a stream and in a unary answer.

A row changes the parts of the ordinary answer: the events of a stream (the role, `You`, ` said:`, the end, `[DONE]`)
or eight slices of a unary body. `OTHERS` are scenarios whose steps depend on time or memory, and have
tests of their own.
"""

import json
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from bridge.emulator.answers import Call, Memory
from bridge.emulator.scenarios import SCENARIOS, parse_scenario
from bridge.emulator.steps import Disconnect, Head, Header, Step, Wait, Write
from tests.unit.emulator.client import request

OTHERS = frozenset({"split", "flaky", "pace", "gzip", "refuse"})

Parts = list[bytes]
Play = Callable[[Parts], list[Step]]

BODY = request(max_tokens=2, stream_options={"include_usage": True})
RECEIVED = json.dumps(BODY).encode()
SSE = Head(200, (("content-type", "text/event-stream"), ("cache-control", "no-cache")))
JSON = ("content-type", "application/json")
DONE = b"data: [DONE]\n\n"


def create_call(*, stream: bool, received: bytes = RECEIVED, memory: Memory | None = None, **changes: Any) -> Call:
    return Call(BODY | {"stream": stream} | changes, received, "MODEL", memory=memory)


def run(scenario: str, call: Call) -> list[Step]:
    name, values = parse_scenario(scenario)
    return list(SCENARIOS[name].run(call, values))


class Row(NamedTuple):
    scenario: str
    stream: Play
    unary: Play


def send_events(events: Parts) -> list[Step]:
    return [SSE, *(Write(event, 1) for event in events)]


def send(status: int, body: bytes, *headers: Header) -> list[Step]:
    return [Head(status, headers, len(body)), Write(body)]


def send_reply(parts: Parts) -> list[Step]:
    return send(200, b"".join(parts), JSON)


def stream_only(scenario: str, change: Callable[[Parts], Parts]) -> Row:
    return Row(scenario, lambda parts: send_events(change(parts)), send_reply)


def edit(scenario: str, change: Callable[[bytes], bytes]) -> Row:
    """Return a row in which every JSON object is changed."""
    return Row(
        scenario,
        lambda parts: send_events([*map(change, parts[:-1]), DONE]),
        lambda parts: send(200, change(b"".join(parts)), JSON),
    )


def begin(scenario: str, count: int, *end: Step) -> Row:
    """Return a row in which so many parts are sent, and then the end."""
    return Row(
        scenario,
        lambda parts: [SSE, *(Write(event, 1) for event in parts[:count]), *end],
        lambda parts: [Head(200, (JSON,)), *map(Write, parts[:count]), *end],
    )


def answer(scenario: str, status: int, body: bytes, *headers: Header) -> Row:
    """Return a row in which both methods get the same answer."""
    return Row(scenario, lambda _: send(status, body, *headers), lambda _: send(status, body, *headers))


def fail(scenario: str, status: int, body: bytes, *headers: Header) -> Row:
    return answer(scenario, status, body, JSON, *headers)


def insert(scenario: str, event: bytes, body: bytes) -> Row:
    """Return a row in which an event is inserted before ` said:`; the unary answer has another body."""
    return Row(
        scenario,
        lambda parts: send_events([*parts[:2], event, *parts[2:]]),
        lambda _: send(200, body, JSON),
    )


def insert_error(query: str, data: bytes) -> Row:
    return insert(f"error_event{query}", b"data: " + data + b"\n\n", data)


def mirror(data: bytes) -> bytes:
    said = json.dumps(RECEIVED.decode()).encode()
    return data.replace(b'"You said:"', said).replace(b'"You"', said).replace(b'"length"', b'"stop"')


def put_content(size: int) -> Callable[[bytes], bytes]:
    content = b'"content":"' + b"x" * size + b'"'
    return lambda data: data.replace(b'"content":""', content).replace(b'"content":"You said:"', content)


def put_delta(event: bytes, delta: bytes) -> bytes:
    return event.replace(b'{"content":"You"}', delta)


def put_logprobs(data: bytes) -> bytes:
    for text in ("You", " said:", "You said:"):
        token = {"token": text, "logprob": -0.25, "bytes": [*text.encode()], "top_logprobs": []}
        logprobs = json.dumps({"content": [token], "refusal": None}, separators=(",", ":")).encode()
        delta = f'"delta":{{"content":"{text}"}}'.encode()
        data = data.replace(b'"logprobs":null,' + delta, b'"logprobs":' + logprobs + b"," + delta)
        message = f'"role":"assistant","content":"{text}"}}}}'.encode()
        data = data.replace(message, message[:-1] + b',"logprobs":' + logprobs + b"}")
    return data


UNKNOWN = (
    b'"x_big":9007199254740993,"x_price":1.10,"x_exponent":1e2,"x_null":null,'
    b'"x_nested":{"z":[1.0,null,{"b":-0,"a":"\\u00e9"}],"a":true}'
)
MISFITS = {
    rb'"id":"[^"]*"': b'"id":12',
    rb'"created":\d+': b'"created":"soon"',
    rb'"model":"[^"]*"': b'"model":["a","b"]',
    rb'"system_fingerprint":""': b'"system_fingerprint":{"b":1,"a":2}',
    rb'"service_tier":null': b'"service_tier":7',
    rb'"role":"assistant"': b'"role":false',
    rb'"prompt_tokens":\d': b'"prompt_tokens":"two"',
    rb'"completion_tokens":\d': b'"completion_tokens":1.5',
    rb'"total_tokens":\d': b'"total_tokens":1180591620717411303424',
}


def add_unknown(data: bytes) -> bytes:
    return re.sub(rb"(\{?)\}", lambda end: end[1] + (b"" if end[1] else b",") + UNKNOWN + b"}", data)


def mistype(data: bytes) -> bytes:
    for pattern, misfit in MISFITS.items():
        data = re.sub(pattern, misfit, data)
    return data


def double(data: bytes) -> bytes:
    (choice,) = re.findall(rb'"choices":\[(.*)\],"created"', data)
    return data.replace(choice, choice + b"," + choice.replace(b'"index":0', b'"index":1'))


def separate_usage(parts: Parts) -> Parts:
    *chunks, finish, done = parts
    usage = finish[finish.index(b'"usage":') :]
    alone = re.sub(rb'"choices":\[.*\],"created"', b'"choices":[],"created"', finish)
    return [*chunks, finish.replace(usage, b'"usage":null}\n\n'), alone, done]


def split_lines(event: bytes) -> bytes:
    data = event.removeprefix(b"data: ").rstrip().decode()
    text = data if data == "[DONE]" else json.dumps(json.loads(data), indent=0, ensure_ascii=False)
    return "".join(f"data:{line}\n" for line in text.split("\n")).encode() + b"\n"


def comment(parts: Parts) -> list[Step]:
    return [SSE, *(step for event in parts for step in (Write(b":\n\n"), Wait(0.5), Write(event, 1)))]


def think(parts: Parts) -> Parts:
    return [parts[0], *(put_delta(parts[1], b'{"why":"%b"}' % word) for word in (b"I", b" think")), *parts[1:]]


def cut_surrogates(parts: Parts) -> Parts:
    halves = (b'{"content": "cut \\ud83d"}', b'{"content": "\\ude00 whole"}')
    return [parts[0], *(put_delta(parts[1], half) for half in halves), *parts[1:]]


def cut_surrogate(parts: Parts) -> list[Step]:
    body = json.dumps(json.loads(b"".join(parts))).replace("You said:", "cut \\ud83d")
    return send(200, body.encode(), JSON)


FLOOD = (("x-flood-0", "xxxxx"), ("x-flood-1", "xxxxx"))
PAGE, HTML = b"<html><body>Welcome to the proxy</body></html>", ("content-type", "text/html")
NAMED = b'event: error\ndata: {"message":"m","type":"server_error","code":null,"param":null}\n\n'
TENSORZERO = (
    b'{"error":{"message":"All variants failed with errors: v1: All model providers failed to infer with errors: '
    b'emulator: Error 429 Too Many Requests from openai client: slow down"}}'
)


def write_error(message: str = "m", type_: str = "server_error", code: str = "null", param: str = "null") -> bytes:
    return f'{{"error":{{"message":"{message}","type":"{type_}","code":{code},"param":{param}}}}}'.encode()


ROWS = (
    Row("plain", send_events, send_reply),
    Row(
        "mirror",
        lambda parts: send_events([*map(mirror, (*parts[:2], parts[3])), DONE]),
        lambda parts: send(200, mirror(b"".join(parts)), JSON),
    ),
    Row(
        "slow?delay_s=1&chunk_delay_s=2",
        lambda parts: [Wait(1), SSE, Write(parts[0], 1), *(x for part in parts[1:] for x in (Wait(2), Write(part, 1)))],
        lambda parts: [Wait(1), *send_reply(parts)],
    ),
    begin("stall", 2, Wait(math.inf)),
    begin("stall?after=0", 0, Wait(math.inf)),
    Row("stall?headers=0", lambda _: [Wait(math.inf)], lambda _: [Wait(math.inf)]),
    begin("cut?after=1", 1),
    begin("cut?after=1000", -2),
    begin("reset?after=0", 0, Disconnect(reset=True)),
    begin("reset", 2, Disconnect(reset=True)),
    Row("reset?after=-1", lambda _: [Disconnect(reset=True)], lambda _: [Disconnect(reset=True)]),
    Row("close", lambda _: [Disconnect(reset=False)], lambda _: [Disconnect(reset=False)]),
    begin("close?after=1", 1, Disconnect(reset=False)),
    begin("half_chunk", 2, Write(b'FF\r\ndata: {"id":', framed=False), Disconnect(reset=False)),
    edit("no_finish", lambda data: data.replace(b'"finish_reason":"length"', b'"finish_reason":null')),
    stream_only("no_done", lambda parts: parts[:-1]),
    stream_only("done_only", lambda _: [DONE]),
    insert("garbage", b"data: {not json\n\n", b"{not json"),
    insert_error("", write_error("the provider failed in mid-stream")),
    insert_error(
        "?message=m&status=429&type=t&code=c",
        b'{"error":{"message":"m","type":"t","code":"c","param":null,"status":429}}',
    ),
    insert_error("?message=m&code=429&type=t", write_error("m", "t", "429")),
    insert_error("?flat=1&message=m", b'{"error":"m"}'),
    insert_error("?flat=1&message=m&raw=1", b'{"error":"m","ollm_raw_chunk":"{not json"}'),
    insert("error_event?named=1&message=m", NAMED, write_error()),
    fail("error?status=599&message=m", 599, write_error()),
    fail("error?status=404&message=m&type=t&code=5&param=p", 404, write_error("m", "t", "5", '"p"')),
    fail("error?status=429&message=m&code=c", 429, write_error("m", "rate_limit_error", '"c"')),
    fail("error?status=99&message=m", 500, write_error(type_="invalid_request_error")),
    fail("error?envelope=bare&message=m", 500, b'{"error":{"message":"m"}}'),
    fail("error?envelope=flat&message=m", 500, b'{"error":"m"}'),
    fail("error?envelope=flat&size=7", 500, '{"error":"错错"}'.encode()),
    fail("error?envelope=detail&message=m", 500, b'{"detail":"m"}'),
    fail("error?envelope=message&message=m", 500, b'{"message":"m"}'),
    fail("error?envelope=none", 500, b"{}"),
    answer("error?envelope=html&message=m", 500, b"<html><body><h1>m</h1></body></html>", HTML),
    answer("error?envelope=empty&raw=1", 500, b""),
    fail(
        "error?envelope=none&raw=1",
        500,
        b'{"ollm_raw_response":[{"provider_type":"emulator","api_type":"chat_completions","data":"{}"}]}',
    ),
    fail(
        "error?retry_after=1.5&retry_after_ms=1500",
        500,
        write_error("the provider failed"),
        ("retry-after", "1.5"),
        ("retry-after-ms", "1500"),
    ),
    fail("http_error", 500, write_error("the provider failed")),
    fail(
        "rate_limited",
        429,
        write_error("rate limit exceeded", "rate_limit_error", '"rate_limit_exceeded"'),
        ("retry-after", "1"),
    ),
    fail("overloaded", 503, write_error("the gateway is overloaded", "overloaded_error"), ("retry-after", "1")),
    fail("provider_failed", 502, TENSORZERO),
    fail("provider_failed?message=m", 502, b'{"error":{"message":"m"}}'),
    Row("comments?every=0.5&count=1", comment, send_reply),
    edit("huge_event?size=300", put_content(300)),
    edit("big?size=5000", put_content(5000)),
    stream_only(
        "many?chunks=3&bytes=10",
        lambda parts: [parts[0], *[put_delta(parts[1], b'{"content":"xxxxxxxxxx"}')] * 3, *parts[3:]],
    ),
    stream_only("crlf", lambda parts: [event.replace(b"\n", b"\r\n") for event in parts]),
    stream_only("cr", lambda parts: [event.replace(b"\n", b"\r") for event in parts]),
    stream_only("bom", lambda parts: [b"\xef\xbb\xbf" + parts[0], *parts[1:]]),
    stream_only("multiline", lambda parts: [*map(split_lines, parts)]),
    stream_only("usage_chunk", separate_usage),
    Row(
        "reasoning?key=why&text=I+think",
        lambda parts: send_events(think(parts)),
        lambda parts: send(200, b"".join(parts).replace(b'said:"', b'said:","why":"I think"'), JSON),
    ),
    edit("logprobs", put_logprobs),
    edit("unknown_fields", add_unknown),
    edit("misfit", mistype),
    Row("surrogate", lambda parts: send_events(cut_surrogates(parts)), cut_surrogate),
    edit("two_choices", double),
    answer("not_json?status=201", 201, PAGE, HTML),
    answer(
        "wrong_type?in_200=1",
        200,
        b'{"error":{"message":"the provider failed","type":"server_error","code":"provider_failed","param":null}}',
        JSON,
    ),
    Row("not_object", lambda _: send_events([b"data: [1,2]\n\n", DONE]), lambda _: send(200, b"[1,2]", JSON)),
    edit("no_choices", lambda data: re.sub(rb'"choices":\[.*\],"created"', b'"created"', data)),
    answer("redirect", 307, b"", ("location", "/elsewhere")),
    answer("redirect?status=302&location=http://x/%20a", 302, b"", ("location", "http://x/ a")),
    Row(
        "header_flood?count=2&size=5",
        lambda parts: [Head(200, (*SSE.headers, *FLOOD)), *(Write(event, 1) for event in parts)],
        lambda parts: [Head(200, (JSON, *FLOOD)), *map(Write, parts)],
    ),
)
