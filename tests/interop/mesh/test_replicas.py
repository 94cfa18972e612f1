"""Two bridges: Envoy retries what is safe and nothing else, while one drains, dies, or can't reach its gateway.

Retries are counted at the gateway, by request id; Envoy's access log says which bridge had a call.
"""

import asyncio
import contextlib
import signal
from collections import Counter
from itertools import pairwise

import pytest

from tests.kit.bridges import start_bridge_process
from tests.kit.client import Answer, chat, scenario
from tests.kit.envoy import (
    CONFIGURATION,
    get_cluster,
    get_connection_manager,
    get_listener,
    read_yaml,
    run_envoy,
)
from tests.kit.waiting import eventually

AT_ONCE = 20
CALLS = 400  # in each part of the load: before, and after each event
NO_RETRIES = {"grpc.enable_retries": 0}  # of the client: every retry is Envoy's
# docs/operations.md, "Behind Envoy": longer than Envoy takes to see a drain.
DRAIN = {"drain_delay_s": 5, "drain_grace_s": 10}

LOST = "the bridge was lost while the call was running; it may have run"


def count_runs(emulator, request_id):
    """Count the requests of a call at the gateway."""
    return sum(exchange.headers["x-request-id"] == request_id for exchange in emulator.exchanges)


class Load:
    """Callers that make unary and streamed calls in turn, each with an id of its own, until the block ends."""

    def __init__(self, envoy) -> None:
        self.envoy = envoy
        self.answers: dict[str, Answer] = {}
        self.begun = 0
        self._stop = asyncio.Event()

    async def _caller(self):
        while not self._stop.is_set():
            self.begun += 1
            request_id, stream = f"call-{self.begun}", bool(self.begun % 2)
            request = scenario("pace?chunks=10&interval_ms=5") if stream else scenario("slow?delay_s=0.03")
            metadata = [("x-request-id", request_id)]
            answer = self.answers[request_id] = await self.envoy.ask(
                request, stream=stream, timeout=60, metadata=metadata
            )
            if answer.failure is not None:
                await asyncio.sleep(1)  # as callers do; at once, one would fail a hundred times until Envoy knows

    @contextlib.asynccontextmanager
    async def run(self):
        callers = [asyncio.create_task(self._caller()) for _ in range(AT_ONCE)]
        try:
            yield
        finally:
            self._stop.set()
            await asyncio.gather(*callers)

    async def wait_for_more(self, calls=CALLS):
        """Wait until this many more calls have ended."""
        until = len(self.answers) + calls
        await eventually(lambda: len(self.answers) >= until, 30)

    @property
    def failures(self) -> dict[str, Answer]:
        return {request_id: answer for request_id, answer in self.answers.items() if answer.failure is not None}


@pytest.mark.timeout(120)
async def test_one_drained_and_one_killed_under_load(emulator, tmp_path, record_property):
    async with contextlib.AsyncExitStack() as stack:
        one = await stack.enter_async_context(start_bridge_process(emulator, **DRAIN))
        other = await stack.enter_async_context(start_bridge_process(emulator, **DRAIN))
        envoy = run_envoy(tmp_path, one.address, other.address, channel=NO_RETRIES)
        envoy = await stack.enter_async_context(envoy)
        load = Load(envoy)
        async with load.run():
            await load.wait_for_more()
            one.process.send_signal(signal.SIGTERM)
            await _wait_until_healthy(envoy, 1)
            assert one.process.returncode is None  # Envoy takes the bridge out before it ends
            assert await one.wait_for_exit() == 0
            await load.wait_for_more()
            drained = len(load.answers)
            assert load.failures == {}

            await stack.enter_async_context(start_bridge_process(emulator, listen=one.address, **DRAIN))
            await _wait_until_healthy(envoy, 2)
            await load.wait_for_more()
            other.process.kill()
            await load.wait_for_more()
        await _wait_until_healthy(envoy, 1)

    lines = {line["request_id"]: line for line in envoy.access}
    run = Counter(exchange.headers["x-request-id"] for exchange in emulator.exchanges)
    lost, repeated = load.failures, {request_id for request_id, times in run.items() if times > 1}
    record_property(
        "mesh",
        f"{drained} calls while one bridge drained, {len(load.answers) - drained} while one was killed: "
        f"{len(lost)} lost, all of them in the killed one's hands; "
        f"{sum(line['attempts'] > 1 for line in lines.values())} repeated safely, {len(repeated)} unsafely",
    )
    assert repeated == set()
    assert {run[request_id] for request_id, answer in load.answers.items() if answer.failure is None} == {1}
    # The killed bridge was answering every lost call: no other bridge could know how far the answer was.
    assert 0 < len(lost) <= AT_ONCE
    assert {(lines[request_id]["bridge"], lines[request_id]["flags"]) for request_id in lost} == {(other.address, "UC")}
    # Once the caller has the answer's head, Envoy can only break it off.
    started = {name for name, answer in lost.items() if answer.messages or "x-request-id" in answer.initial}
    assert {answer.failure.code for name, answer in lost.items() if name not in started} <= {"ABORTED"}
    assert {lost[name].failure.code for name in started} <= {"INTERNAL"}


async def _wait_until_healthy(envoy, count):
    async with asyncio.timeout(60):
        while await envoy.count_healthy() != count:  # noqa: ASYNC110 - Envoy announces nothing
            await asyncio.sleep(0.05)


WINDOWS = {
    "unary": ("stall?headers=0", False, "ABORTED"),
    "stream before the first chunk": ("stall?headers=0", True, "ABORTED"),
    "mid-stream": ("stall?after=2", True, "INTERNAL"),
}


@contextlib.asynccontextmanager
async def kill_during_call(emulator, folder, name, stream, edit=lambda _: None):
    """Run Envoy in front of two bridges, and kill the bridge of a call. Yields Envoy and the call."""
    async with (
        start_bridge_process(emulator) as one,
        start_bridge_process(emulator) as other,
        run_envoy(folder, one.address, other.address, channel=NO_RETRIES, edit=edit) as envoy,
    ):
        metadata = [("x-request-id", "lost")]
        call = asyncio.create_task(envoy.ask(scenario(name), stream=stream, timeout=60, metadata=metadata))
        exchange = await emulator.next_exchange()
        await eventually(lambda: exchange.events_sent == (2 if "after" in name else 0))
        (await _find_busy(envoy, (one, other))).process.kill()
        await exchange.wait_closed()
        yield envoy, call


async def _find_busy(envoy, bridges):
    """Return the bridge that has the one active call."""
    status = (await envoy.admin.get("/clusters", params={"format": "json"})).json()
    (found,) = [each for each in status["cluster_statuses"] if each["name"] == "bridge"]
    for host in found["host_statuses"]:
        active = {stat["name"]: int(stat.get("value", 0)) for stat in host["stats"]}["rq_active"]
        where = host["address"]["socket_address"]
        if active:
            return next(bridge for bridge in bridges if bridge.address == f"{where['address']}:{where['port_value']}")
    raise AssertionError("no bridge has the call")


@pytest.mark.parametrize("window", WINDOWS)
async def test_call_whose_bridge_is_killed_is_not_retried_and_not_unavailable(emulator, tmp_path, window):
    name, stream, code = WINDOWS[window]
    async with kill_during_call(emulator, tmp_path, name, stream) as (envoy, call):
        failed = (await call).failure
        assert failed.code == code
        if code == "ABORTED":
            assert failed.message == LOST
        line = await envoy.wait_for_log_line("lost")
        assert (line["attempts"], line["flags"]) == (1, "UC")
        assert (await envoy.ask(chat())).failure is None
    assert count_runs(emulator, "lost") == 1


async def test_count_at_the_gateway_finds_an_unsafe_policy(emulator, tmp_path):
    """With `reset`, the call of a bridge that died runs twice."""

    def retry_resets(configuration):
        (host,) = get_connection_manager(configuration)["route_config"]["virtual_hosts"]
        host["routes"][0]["route"]["retry_policy"]["retry_on"] = "reset"

    async with kill_during_call(emulator, tmp_path, "stall?headers=0", stream=False, edit=retry_resets) as (_, call):
        await eventually(lambda: count_runs(emulator, "lost") == 2)
        call.cancel()


# Retries


async def test_call_that_one_bridge_could_not_send_is_sent_by_the_other(emulator, tmp_path):
    """UPSTREAM_UNREACHABLE is UNAVAILABLE, since nothing was sent."""
    async with (
        start_bridge_process(emulator) as good,
        start_bridge_process(emulator, upstream__base_url="http://127.0.0.1:9") as cut_off,
        run_envoy(tmp_path, good.address, cut_off.address, channel=NO_RETRIES) as envoy,
    ):
        for number in range(20):
            answer = await envoy.ask(chat(), stream=bool(number % 2), metadata=[("x-request-id", str(number))])
            assert answer.failure is None
        attempts = [(await envoy.wait_for_log_line(str(number)))["attempts"] for number in range(20)]
    assert set(attempts) == {1, 2}
    assert len(emulator.exchanges) == 20


async def test_envoy_does_not_retry_a_request_larger_than_its_buffer(emulator, tmp_path):
    configuration = read_yaml(CONFIGURATION)
    parts = (get_listener(configuration), get_cluster(configuration))
    (limit,) = {part["per_connection_buffer_limit_bytes"] for part in parts}
    async with (
        start_bridge_process(emulator, upstream__base_url="http://127.0.0.1:9") as cut_off,
        run_envoy(tmp_path, cut_off.address, channel=NO_RETRIES) as envoy,
    ):
        for share, attempts in ((0.5, 3), (1.5, 1)):
            request_id = f"of {share}"
            request = chat("x" * int(share * limit))
            answer = await envoy.ask(request, timeout=60, metadata=[("x-request-id", request_id)])
            assert (answer.failure.code, answer.failure.reason) == ("UNAVAILABLE", "UPSTREAM_UNREACHABLE")
            assert (await envoy.wait_for_log_line(request_id))["attempts"] == attempts


async def test_call_to_a_dead_bridge_goes_to_the_other_and_the_dead_one_is_ejected(emulator, tmp_path):
    """By outlier detection only, without health checks."""

    def remove_health_checks(configuration):
        del get_cluster(configuration)["health_checks"]

    async with (
        start_bridge_process(emulator) as one,
        start_bridge_process(emulator) as dead,
        run_envoy(tmp_path, one.address, dead.address, channel=NO_RETRIES, edit=remove_health_checks) as envoy,
    ):
        dead.process.kill()
        await dead.process.wait()
        for _ in range(20):
            assert (await envoy.ask(chat())).failure is None
        stats = await envoy.fetch_stats("cluster.bridge.")
        assert stats["outlier_detection.ejections_enforced_consecutive_local_origin_failure"] == 1
        assert stats["membership_healthy"] == 1
    assert len(emulator.exchanges) == 20


async def test_retry_waits_as_long_as_the_gateway_asks(envoy, emulator):
    failed = (await envoy.ask(scenario("overloaded?retry_after=1"), timeout=60)).failure
    assert failed.code == "UNAVAILABLE"
    received_at = [exchange.received_at for exchange in emulator.exchanges]
    pauses_s = [later - earlier for earlier, later in pairwise(received_at)]
    assert len(pauses_s) == 2
    assert min(pauses_s) >= 0.99


@pytest.mark.parametrize(
    ("name", "stream", "code"),
    [
        ("rate_limited", False, "RESOURCE_EXHAUSTED"),
        ("error?status=500", False, "INTERNAL"),
        ("error?status=504", True, "DEADLINE_EXCEEDED"),
        ("error?status=409", False, "ABORTED"),
        ("reset?after=-1", False, "ABORTED"),
        ("close", True, "ABORTED"),
        ("error_event?after=2&status=503", True, "ABORTED"),
        ("cut", True, "ABORTED"),
    ],
)
async def test_envoy_does_not_retry_a_call_that_may_have_run_or_must_wait(envoy, emulator, name, stream, code):
    assert (await envoy.ask(scenario(name), stream=stream, timeout=60)).failure.code == code
    assert len(emulator.exchanges) == 1


# Ejection


async def test_failures_of_the_gateway_and_of_requests_eject_no_bridge(emulator, tmp_path):
    names = ("error?status=400", "error?status=500", "error?status=504", "provider_failed", "reset?after=-1", "cut")
    async with (
        start_bridge_process(emulator) as one,
        start_bridge_process(emulator) as other,
        run_envoy(tmp_path, one.address, other.address, channel=NO_RETRIES) as envoy,
    ):
        for name in names:
            calls = (envoy.ask(scenario(name), stream=bool(number % 2), timeout=60) for number in range(30))
            assert all(answer.failure is not None for answer in await asyncio.gather(*calls))
        stats = await envoy.fetch_stats("cluster.bridge.")
        assert stats["outlier_detection.ejections_enforced_total"] == 0
        assert stats["membership_healthy"] == 2
        for _ in range(20):
            assert (await envoy.ask(chat())).failure is None
        await eventually(lambda: len(envoy.access) == 30 * len(names) + 20)
    assert {line["bridge"] for line in envoy.access[-20:]} == {one.address, other.address}
