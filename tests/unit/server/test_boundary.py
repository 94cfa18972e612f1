"""Tests of bridge/server/boundary.py: a service that does what it should not, over a transport without a network."""

import asyncio
import contextlib
import threading
from typing import Any

import pytest

from bridge.core.errors import BridgeError, Code
from bridge.core.headers import HeaderPolicy
from bridge.core.item_count import find_overfull_list
from bridge.core.status import GrpcStatus
from bridge.server import boundary
from bridge.server.boundary import Boundary
from bridge.server.callers import Callers
from bridge.server.rpc import Caller
from bridge.settings import Settings
from bridge.telemetry import CallRecord, Observer
from ollmbridge.v1 import error_details_pb2 as details_pb2
from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionResponse
from tests.kit.client import chat
from tests.kit.statuses import parse_status, unpack_details
from tests.kit.waiting import eventually
from tests.unit.server.fake_rpc import FakeRpc, start
from tests.unit.server.fake_service import ENDS, SECRET, Service, fail_with, succeed

METHODS = pytest.mark.parametrize("method", ["CreateChatCompletion", "StreamChatCompletion"])
MESSAGE = chat().SerializeToString()


class Records(Observer):
    def __init__(self) -> None:
        self.all: list[CallRecord] = []
        self.refused: list[tuple[str, str | None]] = []

    def refuse(self, method: str, caller: str | None = None) -> None:
        self.refused.append((method, caller))

    def end(self, record: CallRecord) -> None:
        self.all.append(record)


class Bench:
    """A boundary around a service, and the records of its calls."""

    def __init__(self, service: Service, *, observers=(), **settings: Any) -> None:
        self.records = Records()
        made = Settings(**settings)
        self.boundary = Boundary(
            service, HeaderPolicy(product="test/1"), Callers(made), made, [*observers, self.records]
        )

    async def call(self, rpc: FakeRpc) -> CallRecord:
        """Run a call whose status comes, and return its record."""
        await start(self.boundary, rpc)
        assert rpc.ended is not None
        return self.records.all[-1]


def read_details(rpc: FakeRpc) -> dict[str, Any]:
    return unpack_details(parse_status(rpc.ended[2]["grpc-status-details-bin"]))


class PanicError(BaseException):
    """A foreign panic, such as a Rust extension raises."""


@pytest.mark.parametrize(("fields", "is_here"), [(3000, [True]), (9000, [True, False])])
@pytest.mark.parametrize("is_overfull", [False, True])
async def test_many_fields_are_counted_in_a_thread(fields, is_here, is_overfull, monkeypatch):
    found = []

    def count(*args, **kwargs):
        found.append(threading.current_thread() is threading.main_thread())
        return find_overfull_list(*args, **kwargs)

    monkeypatch.setattr(boundary, "find_overfull_list", count)
    unknown = b"\xf8\x7d\x01" * fields
    items = 10_001 if is_overfull else 1
    request = chat(user="x" * 20_000, stop=["x"] * items)  # short messages are not counted
    record = await Bench(Service(succeed)).call(FakeRpc(unknown + request.SerializeToString()))
    assert record.code == ("INVALID_ARGUMENT" if is_overfull else "OK")
    assert found == ([True, False] if is_overfull else is_here)


FAULTS = {
    "ValueError": ValueError(SECRET),
    "BaseException": PanicError(SECRET),
    "leaked CancelledError": asyncio.CancelledError(SECRET),
    "TimeoutError of another": TimeoutError(SECRET),
    "GeneratorExit": GeneratorExit(SECRET),
    "StopAsyncIteration": StopAsyncIteration(SECRET),
    "ExceptionGroup": ExceptionGroup(SECRET, [ValueError(SECRET)]),
}


@METHODS
@pytest.mark.parametrize("error", FAULTS.values(), ids=FAULTS)
async def test_fault_becomes_a_status_without_its_text(error, method):
    bench = Bench(Service(fail_with(error), chunks=1))
    rpc = FakeRpc(MESSAGE, method=method)
    record = await bench.call(rpc)
    assert rpc.code == Code.INTERNAL
    info = read_details(rpc)["ErrorInfo"]
    assert (info.reason, info.domain) == ("BRIDGE_FAULT", "ollmbridge")
    assert SECRET not in str(rpc.ended)
    assert (record.code, record.reason) == ("INTERNAL", "BRIDGE_FAULT")
    fault = record.fault
    while fault is not error and fault.__cause__ is not None:  # Python wraps what a generator may not raise
        fault = fault.__cause__
    assert fault is error


@METHODS
@pytest.mark.parametrize("code", Code, ids=lambda code: code.name)
async def test_bridge_error_of_each_code_becomes_its_status(code, method):
    error = BridgeError(code, details_pb2.ERROR_REASON_UPSTREAM_REFUSED, "the gateway refused")
    bench = Bench(Service(fail_with(error)))
    rpc = FakeRpc(MESSAGE, method=method)
    record = await bench.call(rpc)
    assert (rpc.code, rpc.ended[1]) == (code, "the gateway refused")
    assert (record.code, record.reason) == (code.name, "UPSTREAM_REFUSED")


async def test_reply_goes_out_with_the_upstream_headers_as_trailers():
    bench = Bench(Service(succeed))
    rpc = FakeRpc(MESSAGE)
    record = await bench.call(rpc)
    assert rpc.code == 0
    assert [CreateChatCompletionResponse.FromString(each).id for each in rpc.sent] == ["whole"]
    assert rpc.headers is None
    assert rpc.ended[2]["x-request-id"] == "r-1"
    assert record.response_bytes == len(rpc.sent[0])


async def test_stream_without_chunks_has_the_upstream_headers_as_trailers():
    bench = Bench(Service(succeed, 0))
    rpc = FakeRpc(MESSAGE, method="StreamChatCompletion")
    record = await bench.call(rpc)
    assert (rpc.code, len(rpc.sent)) == (0, 0)
    assert rpc.headers is None
    assert rpc.ended[2]["x-request-id"] == "r-1"
    assert record.response_bytes == 0


async def test_stream_has_the_upstream_headers_as_initial_metadata():
    bench = Bench(Service(succeed, 3))
    rpc = FakeRpc(MESSAGE, method="StreamChatCompletion")
    record = await bench.call(rpc)
    assert (rpc.code, len(rpc.sent)) == (0, 3)
    assert rpc.headers == [("x-request-id", "r-1")]
    assert "x-request-id" not in rpc.ended[2]
    assert record.response_bytes == sum(map(len, rpc.sent))


@METHODS
@pytest.mark.parametrize("fails", [True, False], ids=["a failure of the upstream", "a fault of the bridge"])
async def test_failure_after_a_head_says_what_the_head_said(fails, method):
    error = BridgeError(Code.RESOURCE_EXHAUSTED, details_pb2.ERROR_REASON_UPSTREAM_STREAM_ERROR, "no")

    class Answered(Service):
        async def CreateChatCompletion(self, request, call):
            call.upstream.http_status, call.upstream.answer_headers = 200, [(b"retry-after", b"2")]
            await super().CreateChatCompletion(request, call)

        async def StreamChatCompletion(self, request, call):
            call.upstream.http_status, call.upstream.answer_headers = 200, [(b"retry-after", b"2")]
            async for chunk in super().StreamChatCompletion(request, call):
                yield chunk

    rpc = FakeRpc(MESSAGE, method=method)
    await Bench(Answered(fail_with(error if fails else ValueError(SECRET)))).call(rpc)
    details = read_details(rpc)
    assert details["UpstreamError"].http_status == 200
    assert details["ErrorInfo"].metadata["httpStatus"] == "200"
    assert ("RetryInfo" in details) is fails
    assert rpc.ended[2].get("grpc-retry-pushback-ms") == ("2000" if fails else None)


@METHODS
async def test_failure_comes_with_its_request_id_and_the_upstream_headers(method):
    error = BridgeError(
        Code.RESOURCE_EXHAUSTED, details_pb2.ERROR_REASON_UPSTREAM_RATE_LIMITED, "no", retry_after_ms=1500
    )
    bench = Bench(Service(fail_with(error), chunks=2))
    rpc = FakeRpc(MESSAGE, method=method, metadata=(("x-request-id", "mine"),))
    await bench.call(rpc)
    assert read_details(rpc)["RequestInfo"].request_id == "mine"
    assert rpc.ended[2]["x-request-id"] == "r-1"
    assert rpc.ended[2]["grpc-retry-pushback-ms"] == "1500"


@METHODS
@pytest.mark.parametrize(("is_expired", "code"), [(False, "CANCELLED"), (True, "DEADLINE_EXCEEDED")])
async def test_call_that_its_caller_ends_has_no_status_and_a_record(method, is_expired, code):
    running = asyncio.Event()

    async def act() -> None:
        running.set()
        await asyncio.Event().wait()

    bench = Bench(Service(act))
    rpc = FakeRpc(MESSAGE, method=method, timeout_s=60)
    call = start(bench.boundary, rpc)
    await running.wait()
    rpc.is_expired = is_expired
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert rpc.ended is None
    assert [(record.code, record.reason) for record in bench.records.all] == [(code, "")]
    assert bench.boundary.drain.in_flight == 0


async def test_disconnect_during_a_write_is_a_cancellation():
    bench = Bench(Service(succeed, chunks=3))
    rpc = FakeRpc(MESSAGE, method="StreamChatCompletion")
    rpc.is_disconnected = True
    with pytest.raises(asyncio.CancelledError):
        await start(bench.boundary, rpc)
    assert [record.code for record in bench.records.all] == ["CANCELLED"]


@METHODS
async def test_call_that_the_transport_refused_is_recorded_as_such(method):
    bench = Bench(Service(succeed))
    rpc = FakeRpc(None, method=method, is_refused=True)
    with pytest.raises(asyncio.CancelledError):
        await start(bench.boundary, rpc)
    assert [record.code for record in bench.records.all] == ["RESOURCE_EXHAUSTED"]


@METHODS
@pytest.mark.parametrize("message", [None, b"\xff\xff"], ids=["none", "bad"])
async def test_message_that_cannot_be_decoded_is_a_failure_like_any_other(method, message):
    bench = Bench(Service(succeed))
    rpc = FakeRpc(message, method=method)
    record = await bench.call(rpc)
    assert (rpc.code, record.reason) == (Code.INVALID_ARGUMENT, "UNDECODABLE_REQUEST")


async def test_heartbeat_goes_out_in_silence_and_is_no_chunk_that_changes_a_code():
    async def fail():
        await eventually(lambda: rpc.sent)
        raise BridgeError(Code.UNAVAILABLE, details_pb2.ERROR_REASON_UPSTREAM_UNAVAILABLE, "try again")

    bench = Bench(Service(fail), heartbeat_s=0.01)
    rpc = FakeRpc(MESSAGE, method="StreamChatCompletion")
    record = await bench.call(rpc)
    assert (record.code, record.chunks) == ("UNAVAILABLE", 0)
    assert set(rpc.sent) == {b""}
    assert rpc.headers == []
    assert rpc.ended[2]["x-request-id"] == "r-1"


@METHODS
async def test_call_timeout_bounds_a_call_without_a_deadline(method):
    bench = Bench(Service(asyncio.Event().wait), call_timeout_s=0.01)
    rpc = FakeRpc(MESSAGE, method=method)
    record = await bench.call(rpc)
    assert (record.code, record.reason) == ("DEADLINE_EXCEEDED", "UPSTREAM_TIMEOUT")
    assert "call_timeout_s (0.01 s)" in rpc.ended[1]


@METHODS
async def test_call_timeout_leaves_a_call_with_a_deadline_alone(method):
    bench = Bench(Service(asyncio.Event().wait), call_timeout_s=0.01)
    within, without = (FakeRpc(MESSAGE, method=method, timeout_s=each) for each in (60, None))
    call = start(bench.boundary, within)
    await bench.call(without)  # its time is over, and the other's would be
    assert not call.done()
    call.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await call


@METHODS
async def test_drain_interrupts_a_call_with_a_status(method):
    bench = Bench(Service(asyncio.Event().wait))
    rpc = FakeRpc(MESSAGE, method=method)
    call = start(bench.boundary, rpc)
    await eventually(lambda: bench.boundary.drain.in_flight)
    await bench.boundary.drain.run(0)
    await call
    assert (rpc.code, bench.records.all[0].reason) == (Code.UNAVAILABLE, "DRAINING")


@METHODS
async def test_caller_who_leaves_while_the_drain_interrupts_has_cancelled(method):
    bench = Bench(Service(asyncio.Event().wait))
    rpc = FakeRpc(MESSAGE, method=method)
    call = start(bench.boundary, rpc)
    await eventually(lambda: bench.boundary.drain.in_flight)
    draining = asyncio.create_task(bench.boundary.drain.run(0))
    for _ in range(100):
        if not call.cancelling():
            await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await draining
    assert [record.code for record in bench.records.all] == ["CANCELLED"]


class FailingObserver(Observer):
    def start(self, _method):
        raise OSError("the disk is full")

    def add_chunks(self, _method, _gaps_s):
        raise OSError("the disk is full")

    def end(self, _record):
        raise OSError("the disk is full")


@METHODS
@pytest.mark.parametrize("act", ENDS.values(), ids=ENDS)
async def test_observer_that_raises_does_no_harm(act, method):
    bench = Bench(Service(act, chunks=200), observers=[FailingObserver()])
    rpc = FakeRpc(MESSAGE, method=method)
    record = await bench.call(rpc)
    assert rpc.code == (Code[record.code] if record.code != "OK" else 0)


class CountingObserver(Observer):
    """Counts the chunks that it is told of, and keeps how many those were at the call's end."""

    def __init__(self) -> None:
        self.count = 0
        self.count_at_end: int | None = None

    def add_chunks(self, method, gaps_s):
        assert method == "StreamChatCompletion"
        assert all(gap_s >= 0 for gap_s in gaps_s)
        self.count += len(gaps_s)

    def end(self, _record):
        self.count_at_end = self.count


@pytest.mark.parametrize("chunks", [0, 1, 2, 64, 65, 66, 200])
@pytest.mark.parametrize("act", ENDS.values(), ids=ENDS)
async def test_observers_know_of_each_chunk_after_the_first_before_the_end(act, chunks):
    counting = CountingObserver()
    bench = Bench(Service(act, chunks=chunks), observers=[counting])
    await bench.call(FakeRpc(MESSAGE, method="StreamChatCompletion"))
    assert counting.count_at_end == max(0, chunks - 1)


@METHODS
async def test_record_bounds_and_redacts_what_the_caller_chose(method):
    bench = Bench(Service(succeed))
    message = chat(model=SECRET + "x" * 100_000).SerializeToString()
    record = await bench.call(FakeRpc(message, method=method, metadata=(("x-request-id", "Bearer " + "y" * 1000),)))
    assert record.model == "sk-[redacted]"
    assert record.request_id == "Bearer [redacted]"


@METHODS
async def test_calls_max_counts_only_calls_in_flight(method):
    running, release = asyncio.Event(), asyncio.Event()

    async def act() -> None:
        running.set()
        await release.wait()

    bench = Bench(Service(act), calls_max=1)
    first = start(bench.boundary, FakeRpc(MESSAGE, method=method))
    await running.wait()
    over = FakeRpc(MESSAGE, method=method)
    assert (await bench.call(over)).reason == "OVERLOADED"
    assert read_details(over)["RetryInfo"].retry_delay.ToMilliseconds() == 1000
    assert over.ended[2]["grpc-retry-pushback-ms"] == "1000"
    release.set()
    await first
    assert (await bench.call(FakeRpc(MESSAGE, method=method))).code == "OK"


TOKEN = [("authorization", "Bearer alpha")]
PEER = "ipv4:127.0.0.1:1"


@pytest.fixture
def with_tokens(tmp_path):
    (path := tmp_path / "tokens").write_text("team-a alpha\nteam-b beta\n")
    path.chmod(0o600)
    return {"tokens_file": path, "upstream": {"api_key": "sk-own"}}


async def test_caller_who_was_identified_as_the_call_arrived_is_not_looked_for_again(with_tokens):
    bench = Bench(Service(succeed), **with_tokens)
    rpc = FakeRpc(MESSAGE)  # without a token
    rpc.caller = bench.boundary.identify("CreateChatCompletion", TOKEN, {}, PEER, {})
    assert rpc.caller == Caller("team-a", "name team-a")
    record = await bench.call(rpc)
    assert (record.code, record.caller) == ("OK", "team-a")


@METHODS
async def test_call_above_its_callers_limit_is_refused_as_it_arrives(method, with_tokens):
    bench = Bench(Service(asyncio.Event().wait), calls_per_caller_max=2, **with_tokens)
    call = start(bench.boundary, FakeRpc(MESSAGE, method=method, metadata=TOKEN))
    await eventually(lambda: bench.boundary.drain.in_flight)

    def arrive(token="alpha", **arriving):
        counts = {f"name team-{name}": count for name, count in arriving.items()}
        return bench.boundary.identify(method, [("authorization", f"Bearer {token}")], {}, PEER, counts)

    assert arrive(b=5) == Caller("team-a", "name team-a")
    status = arrive(a=1)
    assert (status.code, status.message) == (
        Code.RESOURCE_EXHAUSTED,
        "too many calls in flight of one caller (calls_per_caller_max = 2)",
    )
    details = unpack_details(parse_status(dict(status.trailers)["grpc-status-details-bin"]))
    assert details["ErrorInfo"].reason == "OVERLOADED"
    assert details["RetryInfo"].retry_delay.ToMilliseconds() == 1000
    assert arrive("beta", a=1) == Caller("team-b", "name team-b")
    assert bench.records.refused == [(method, "team-a")]
    call.cancel()
    await asyncio.wait([call])
    assert arrive(a=1) == Caller("team-a", "name team-a")


async def test_caller_at_the_limit_without_a_valid_token_is_told_so(with_tokens):
    bench = Bench(Service(asyncio.Event().wait), calls_per_caller_max=1, **with_tokens)
    call = start(bench.boundary, FakeRpc(MESSAGE, metadata=TOKEN))
    await eventually(lambda: bench.boundary.drain.in_flight)
    for metadata in ([], [("authorization", "Bearer gamma")]):
        rpc = FakeRpc(MESSAGE, metadata=metadata)
        rpc.caller = bench.boundary.identify(rpc.method, metadata, {}, PEER, {f"peer {PEER[:-2]}": 9, "": 9})
        assert (await bench.call(rpc)).reason == "CALLER_UNAUTHENTICATED"
    assert bench.records.refused == []
    call.cancel()
    await asyncio.wait([call])


async def test_fault_in_looking_for_the_caller_becomes_a_status():
    class Faulty(Callers):
        def identify(self, _metadata, _certificate, _peer):
            raise ValueError(SECRET)

    made, records = Settings(), Records()
    boundary = Boundary(Service(succeed), HeaderPolicy(product="test/1"), Faulty(made), made, [records])
    rpc = FakeRpc(MESSAGE)
    rpc.caller = boundary.identify(rpc.method, [], {}, PEER, {})
    await start(boundary, rpc)
    assert [record.reason for record in records.all] == ["BRIDGE_FAULT"]


async def test_call_that_arrives_in_a_drain_is_refused_for_that_whoever_makes_it():
    bench = Bench(Service(asyncio.Event().wait), calls_per_caller_max=1)
    call = start(bench.boundary, FakeRpc(MESSAGE))
    await eventually(lambda: bench.boundary.drain.in_flight)
    assert isinstance(bench.boundary.identify("CreateChatCompletion", [], {}, PEER, {}), GrpcStatus)
    draining = asyncio.create_task(bench.boundary.drain.run(60))
    await asyncio.sleep(0)
    rpc = FakeRpc(MESSAGE)
    rpc.caller = bench.boundary.identify(rpc.method, [], {}, PEER, {})
    assert (await bench.call(rpc)).reason == "DRAINING"
    call.cancel()
    await asyncio.wait([call, draining])


@METHODS
async def test_messages_of_calls_in_flight_are_bounded_together(method):
    running, release = asyncio.Event(), asyncio.Event()

    async def act() -> None:
        running.set()
        await release.wait()

    message = chat("x" * 2000).SerializeToString()
    bench = Bench(Service(act), request_bytes_max=4096, requests_bytes_max=2 * len(message) - 1)
    first = start(bench.boundary, FakeRpc(message, method=method))
    await running.wait()
    over = FakeRpc(message, method=method)
    assert (await bench.call(over)).reason == "OVERLOADED"
    assert f"(requests_bytes_max = {2 * len(message) - 1})" in over.ended[1]
    release.set()
    await first
    for _ in range(3):
        assert (await bench.call(FakeRpc(message, method=method))).code == "OK"


@METHODS
async def test_key_in_metadata_that_is_refused_is_not_logged(method):
    bench = Bench(Service(succeed))
    rpc = FakeRpc(MESSAGE, method=method, metadata=(("authorization", f"Bearer {SECRET}"),) * 2)
    record = await bench.call(rpc)
    assert record.reason == "INVALID_METADATA"
    assert SECRET not in f"{rpc.ended}{record}"


@METHODS
async def test_request_id_is_made_if_the_caller_sent_none(method):
    bench = Bench(Service(succeed))
    ids = [(await bench.call(FakeRpc(MESSAGE, method=method))).request_id for _ in range(3)]
    assert len(set(ids)) == 3
    assert all(len(each) == 36 for each in ids)


async def test_small_message_overtakes_a_burst_of_large_ones():
    served = []
    large = chat("x" * 4000, model="large").SerializeToString()

    class Listing(Service):
        async def CreateChatCompletion(self, request, call):
            served.append(request.model)
            return await super().CreateChatCompletion(request, call)

    bench = Bench(Listing(succeed))
    calls = [start(bench.boundary, FakeRpc(large)) for _ in range(50)]
    await asyncio.sleep(0)
    calls.append(start(bench.boundary, FakeRpc(MESSAGE)))
    await asyncio.gather(*calls)
    assert served.count("large") == 50
    assert served.index("echo") < 5


async def test_large_message_whose_call_ends_while_it_waits_holds_up_no_other():
    large = chat("x" * 4000).SerializeToString()
    bench = Bench(Service(succeed))
    calls = [start(bench.boundary, FakeRpc(large)) for _ in range(9)]
    await asyncio.sleep(0)
    for call in calls[:8]:
        call.cancel()
    await asyncio.wait(calls)
    assert (await bench.call(FakeRpc(large))).code == "OK"
