"""Tests of bridge/server/asgi_rpc.py: bodies, callers who leave or do not read, deadlines, who calls."""

import asyncio
import gc
import gzip
import json
import threading

import pytest

from bridge.server.asgi_rpc import AsgiRpc
from bridge.server.protocols.connect import ConnectUnaryWire
from bridge.server.protocols.grpc_web import GrpcWebWire
from bridge.server.protocols.wire import Types
from bridge.server.turns import Turns
from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionRequest, CreateChatCompletionResponse
from tests.kit.certificates import DNS, create_pem
from tests.kit.hostile import MIB
from tests.kit.waiting import eventually
from tests.kit.web import encode_frame
from tests.unit.server.asgi_bench import STREAM, UNARY, Bench
from tests.unit.server.fake_service import SECRET, Service, succeed


async def test_fault_below_the_boundary_is_a_status_too(caplog):
    bench = Bench(Service(succeed))
    bench.boundary.handle = fail_with_secret  # type: ignore[method-assign]
    answer = await bench.request().run()
    assert answer.status == 500
    assert SECRET.encode() not in answer.body


async def fail_with_secret(_rpc):
    raise ValueError(SECRET)


BODIES = {
    "no JSON": (b"{", 400, "INVALID_ARGUMENT"),
    "unknown key": (b'{"foo":1}', 400, "INVALID_ARGUMENT"),
    "too large": (bytes(2000), 429, "RESOURCE_EXHAUSTED"),
}


@pytest.mark.parametrize(("body", "status", "code"), BODIES.values(), ids=BODIES)
async def test_body_that_is_no_message_ends_the_call(body, status, code):
    bench = Bench(Service(succeed), request_bytes_max=1024)
    request = bench.request()
    request.incoming = asyncio.Queue()
    request.incoming.put_nowait({"type": "http.request", "body": body, "more_body": False})
    assert (await request.run()).status == status
    assert bench.records.all[0].code == code


async def test_body_may_come_in_parts():
    request = Bench(Service(succeed)).request()
    whole = request.incoming.get_nowait()["body"]
    for byte in whole:
        request.incoming.put_nowait({"type": "http.request", "body": bytes([byte]), "more_body": True})
    request.incoming.put_nowait({"type": "http.request"})
    assert (await request.run()).status == 200


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_small_body_overtakes_a_burst_of_large_ones(encoding):
    """Even where they have taken all slots for receiving: a body that waits to be decoded has been received."""
    served = []

    class Listing(Service):
        async def CreateChatCompletion(self, request, call):
            served.append(len(request.messages))
            return await super().CreateChatCompletion(request, call)

    bench = Bench(Listing(succeed), receiving_bytes_max=4 * MIB, request_bytes_max=4 * MIB)
    text = json.dumps({"model": "m", "messages": [{"role": "user"}] * 500}).encode()
    body = gzip.compress(text) if encoding == "gzip" else text
    options = {"headers": {"content-encoding": encoding}} if encoding == "gzip" else {}
    tasks = []
    for _ in range(20):
        request = bench.request(**options)
        request.incoming.get_nowait()
        request.incoming.put_nowait({"type": "http.request", "body": body})
        tasks.append(request.start())
    small = bench.request()
    await asyncio.gather(*tasks[:1], small.start())
    assert small.status == 200
    assert served.count(500) < 5
    await asyncio.gather(*tasks)
    assert served.count(500) == 20


async def test_announced_body_beyond_the_limit_is_not_read():
    for length in ("5000", "9" * 30):
        request = Bench(Service(succeed), request_bytes_max=1024).request(headers={"content-length": length})
        assert (await request.run()).status == 429
        assert not request.incoming.empty()


async def wait_for_ever():
    await asyncio.Event().wait()


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
async def test_caller_who_leaves_cancels_the_call(stream):
    bench = Bench(Service(wait_for_ever, chunks=1))
    request = bench.request(stream=stream)
    task = request.start()
    await eventually(lambda: request.incoming.empty() and (request.events or not stream))
    request.disconnect()
    await task
    assert bench.records.all[0].code == "CANCELLED"
    assert not stream or not request.is_whole


async def test_caller_who_leaves_within_the_body_cancels_the_call():
    bench = Bench(Service(succeed))
    request = bench.request()
    request.incoming = asyncio.Queue()
    request.incoming.put_nowait({"type": "http.request", "body": b"{", "more_body": True})
    request.disconnect()
    await request.run()
    assert request.events == []
    assert bench.records.all[0].code == "CANCELLED"


async def test_server_that_cancels_the_request_cancels_the_call():
    bench = Bench(Service(wait_for_ever))
    task = bench.request().start()
    await eventually(lambda: bench.boundary.drain.in_flight)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert bench.records.all[0].code == "CANCELLED"


async def test_server_that_raises_at_a_send_has_lost_the_caller():
    bench = Bench(Service(succeed, chunks=3))
    request = bench.request(stream=True)

    async def send(_event):
        raise OSError("gone")

    request.send = send  # type: ignore[method-assign]
    await request.run()
    assert bench.records.all[0].code == "CANCELLED"


async def test_deadline_ends_the_call_with_a_status():
    bench = Bench(Service(wait_for_ever))
    answer = await bench.request(headers={"connect-timeout-ms": "50"}).run()
    assert answer.status == 504
    assert bench.records.all[0].code == "DEADLINE_EXCEEDED"


async def test_caller_who_leaves_at_its_own_deadline_has_let_it_pass():
    bench = Bench(Service(wait_for_ever))
    request = bench.request(headers={"connect-timeout-ms": "9"})  # less than the slack
    request.incoming.put_nowait({"type": "http.disconnect"})
    await request.run()
    assert bench.records.all[0].code == "DEADLINE_EXCEEDED"


async def test_status_of_a_caller_who_takes_nothing_is_not_waited_for():
    bench = Bench(Service(succeed, chunks=3), write_stall_timeout_s=0.1)
    request = bench.request(stream=True)
    request.writable.clear()
    await request.run()
    assert request.events == []
    assert bench.records.all[0].code == "DEADLINE_EXCEEDED"


async def test_unary_answer_that_is_not_taken_is_given_up():
    bench = Bench(Service(succeed), write_stall_timeout_s=0.05)
    request = bench.request()
    request.writable.clear()
    await request.run()
    assert request.events == []


async def test_large_answer_is_sent_in_parts():
    answer = await Bench(LargeService()).request("connect+proto").run()
    parts = [event["body"] for event in answer.events[1:]]
    assert max(map(len, parts)) == 65_536
    assert sum(map(len, parts)) == int(answer.headers["content-length"])
    assert answer.is_whole


async def test_large_message_of_a_stream_is_sent_in_parts_and_each_is_reported():
    request = Bench(Service(succeed)).request(stream=True)
    wire = GrpcWebWire((), MIB)
    rpc = AsgiRpc(STREAM, wire, request.scope, request.incoming.get, request.send, Turns(), is_unary=False)
    parts: list[int] = []
    await rpc.send(bytes(200_000), lambda: parts.append(len(request.events)))
    assert max(len(event["body"]) for event in request.events[1:]) == 65_536
    assert request.body[5:] == bytes(200_000)
    assert parts == [2, 3, 4]


class ThreadWire(ConnectUnaryWire):
    """Notes whether bodies are read in the thread of the test."""

    def __init__(self) -> None:
        super().__init__(Types(CreateChatCompletionRequest, CreateChatCompletionResponse), (), MIB, is_json=True)
        self.is_here: list[bool] = []

    def read_body(self, body):
        self.is_here.append(threading.current_thread() is threading.main_thread())
        return super().read_body(body)


@pytest.mark.parametrize(("values", "is_here"), [(1000, True), (9000, False)])
async def test_json_of_many_values_is_decoded_in_a_thread_however_small_it_is(values, is_here):
    request = Bench(Service(succeed)).request()
    wire = ThreadWire()
    rpc = AsgiRpc(UNARY, wire, request.scope, request.incoming.get, request.send, Turns(), is_unary=True)
    assert await rpc.decode(b'{"stop":[' + b",".join([b'""'] * values) + b"]}")
    assert wire.is_here == [is_here]


LENGTHS = {"small": ("65536", 0), "large": ("65537", 1), "not announced": (None, 1)}


@pytest.mark.parametrize(("length", "rooms"), LENGTHS.values(), ids=LENGTHS)
async def test_room_is_taken_for_a_body_that_may_be_more_than_comes_unasked(length, rooms):
    request = Bench(Service(succeed)).request(headers={} if length is None else {"content-length": length})
    wire = GrpcWebWire((), MIB)
    rpc = AsgiRpc(STREAM, wire, request.scope, request.incoming.get, request.send, Turns(), is_unary=False)
    taken: list[int] = []

    async def take_room() -> None:
        taken.append(request.incoming.qsize())

    assert await rpc.receive(take_room) is not None
    assert taken == [1] * rooms


class SlowWire(ConnectUnaryWire):
    """Reads a body until it is released."""

    def __init__(self) -> None:
        super().__init__(Types(CreateChatCompletionRequest, CreateChatCompletionResponse), (), MIB, is_json=True)
        self.begun, self.released = threading.Event(), threading.Event()

    def read_body(self, body):
        self.begun.set()
        self.released.wait()
        return body


async def test_call_that_is_cancelled_keeps_its_turn_until_its_body_is_decoded():
    turns, wires, tasks = Turns(), [SlowWire(), SlowWire()], []
    for wire in wires:
        request = Bench(Service(succeed)).request()
        rpc = AsgiRpc(UNARY, wire, request.scope, request.incoming.get, request.send, turns, is_unary=True)
        tasks.append(asyncio.create_task(rpc.decode(bytes(300_000))))
    await asyncio.to_thread(wires[0].begun.wait)
    try:
        tasks[0].cancel()
        for _ in range(10):
            await asyncio.sleep(0)
        assert not tasks[0].done()
        assert not wires[1].begun.is_set()
    finally:
        for wire in wires:
            wire.released.set()
    assert await tasks[1] == bytes(300_000)
    assert tasks[0].cancelled()


class LargeService(Service):
    def __init__(self):
        super().__init__(succeed)

    async def CreateChatCompletion(self, request, call):
        reply = await super().CreateChatCompletion(request, call)
        reply.id = "x" * 200_000
        return reply


PEERS = {
    "IPv4": (("10.0.0.1", 7), "ipv4:10.0.0.1:7"),
    "IPv6": (("::1", 7), "ipv6:%5B::1%5D:7"),
    "none": (None, "unix:"),
}


@pytest.mark.parametrize(("client", "peer"), PEERS.values(), ids=PEERS)
async def test_peer_is_written_as_grpc_writes_it(client, peer):
    bench = Bench(Service(succeed))
    await bench.request(client=client).run()
    assert bench.records.all[0].peer == peer


async def test_certificate_comes_with_the_tls_extension():
    pem = create_pem(DNS("team-a.example")).decode()
    bench = Bench(Service(succeed))
    await bench.request(extensions={"tls": {"client_cert_chain": [pem]}}).run()
    assert bench.records.all[0].caller == "team-a.example"


async def test_frame_of_several_requests_is_refused():
    bench = Bench(Service(succeed))
    request = bench.request("grpc-web")
    request.incoming = asyncio.Queue()
    request.incoming.put_nowait({"type": "http.request", "body": encode_frame(b"") * 2, "more_body": False})
    answer = await request.run()
    assert b"grpc-status: 12\r\n" in answer.body
    assert bench.records.all[0].code == "UNIMPLEMENTED"


ENDS = {
    "OK": {},
    "no JSON": {"body": b"{"},
    "too large": {"headers": {"content-length": "99999999"}},
    "no gzip": {"headers": {"content-encoding": "gzip"}},
    "deadline": {"headers": {"connect-timeout-ms": "0"}},
    "disconnect": {"body": None},
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
async def test_call_that_is_over_holds_nothing(end):
    """Only a full collection would find what it held, and those are rare."""
    bench = Bench(Service(succeed))
    request = bench.request(headers=end.get("headers", {}))
    if "body" in end:
        request.incoming = asyncio.Queue()
        event = {"type": "http.request", "body": end["body"]} if end["body"] else {"type": "http.disconnect"}
        request.incoming.put_nowait(event)
    gc.collect()
    gc.disable()
    try:
        before = list_rpcs()  # errors that other tests keep hold some
        await request.run()
        await asyncio.sleep(0)
        assert [each for each in list_rpcs() if each not in before] == []
    finally:
        gc.enable()


def list_rpcs() -> list[AsgiRpc]:
    return [each for each in gc.get_objects() if isinstance(each, AsgiRpc)]
