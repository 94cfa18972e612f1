"""Several workers on one port: all get calls, one that dies is replaced without harm to the others, all drain."""

import asyncio
import json
import os
import re
import signal

import grpc
import httpx2
import pytest

from tests.kit.bridges import SERVE, start_bridge_process
from tests.kit.client import Bridge, chat, scenario
from tests.kit.proc import find_children, is_running
from tests.kit.processes import build_bridge_environment, describe_missing_namespaces, run_program_async
from tests.kit.upstreams import start_server
from tests.kit.waiting import WAIT_S, eventually

OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


async def ask_over_new_connection(bridge, request, **options):
    async with grpc.aio.insecure_channel(bridge.address, options=OWN_CONNECTION) as channel:
        return await Bridge(bridge.address, channel).ask(request, **options)


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
FIRST = b'data: {"choices": [{"delta": {"content": "You"}, "finish_reason": null}]}\n\n'
REST = b'data: {"choices": [{"delta": {"content": " said"}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'


async def test_worker_killed_under_load_loses_only_its_own_calls():
    is_lost = asyncio.Event()
    begun = []

    async def serve(peer):
        await peer.read_request()
        await peer.write(HEAD + FIRST)
        begun.append(peer)
        await is_lost.wait()
        await peer.write(REST)

    async with start_server(serve) as upstream, start_bridge_process(upstream, workers=2, drain_grace_s=5) as bridge:
        pids = find_children(bridge.process.pid, b"spawn_main")
        assert len(pids) == 2
        streams = [asyncio.create_task(ask_over_new_connection(bridge, chat(), stream=True)) for _ in range(24)]
        await eventually(lambda: len(begun) == 24)
        os.kill(pids[0], signal.SIGKILL)
        await asyncio.wait_for(asyncio.wait(streams, return_when=asyncio.FIRST_COMPLETED), WAIT_S)
        is_lost.set()
        answers = await asyncio.gather(*streams)
        lost = [answer for answer in answers if answer.failure is not None]
        assert 0 < len(lost) < 24
        assert {answer.failure.code for answer in lost} == {"UNAVAILABLE"}
        assert {answer.text for answer in answers if answer.failure is None} == {"You said"}
        await eventually(lambda: len(find_children(bridge.process.pid, b"spawn_main")) == 2)
        assert pids[0] not in find_children(bridge.process.pid, b"spawn_main")
        answer = await ask_over_new_connection(bridge, chat(), stream=True, wait_for_ready=True, timeout=WAIT_S)
        assert answer.text == "You said", answer.failure
        bridge.process.send_signal(signal.SIGTERM)
        assert await bridge.wait_for_exit() == 0
        assert "a worker died" in [json.loads(line)["event"] for line in bridge.log_lines]


async def test_metrics_of_all_workers_are_on_one_page(emulator):
    async with start_bridge_process(emulator, workers=2) as bridge:
        admin = bridge.admin_address
        for _ in range(20):
            assert (await ask_over_new_connection(bridge, chat("Hi"))).failure is None
        async with httpx2.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"http://{admin}/healthz")).status_code == 200
            assert await wait_for_calls(client, admin, 20) == 20
            os.kill(find_children(bridge.process.pid, b"spawn_main")[0], signal.SIGKILL)
            await eventually(lambda: "a worker died" in bridge.log)
            assert await wait_for_calls(client, admin, 20) == 20
            await wait_for_sample(client, admin, 'ollm_bridge_processes{state="serving"}', 2)
            await wait_for_sample(client, admin, "ollm_bridge_worker_restarts_total", 1)
            await wait_for_sample(client, admin, "ollm_bridge_calls_max", 2000)
            page = (await client.get(f"http://{admin}/metrics")).text
            assert read_sample(page, "process_resident_memory_bytes") > 3 * 20_000_000


async def test_connections_of_callers_are_counted_once_for_all_workers(emulator):
    async with start_bridge_process(emulator, workers=2) as bridge:
        admin = bridge.admin_address
        assert (await bridge.ask(chat("Hi"))).failure is None
        async with httpx2.AsyncClient(trust_env=False) as client:
            await wait_for_sample(client, admin, "ollm_bridge_caller_connections", 1)


async def test_page_has_the_callers_and_the_states_of_all_workers(emulator):
    names = ("a.example", "b.example")
    settings = {"workers": 2, "mesh__identity_header": "l5d-client-id", "drain_grace_s": 60}
    async with start_bridge_process(emulator, **settings) as bridge, httpx2.AsyncClient(trust_env=False) as client:
        admin = bridge.admin_address
        for number in range(20):
            metadata = [("l5d-client-id", names[number % 2])]
            assert (await ask_over_new_connection(bridge, chat("Hi"), metadata=metadata)).failure is None

        calls = dict.fromkeys(names, 10)
        await wait_for_status(
            client, admin, lambda status: status["states"] == {"serving": 2} and count_calls(status) == calls
        )
        metadata = [("l5d-client-id", "b.example")]
        held = asyncio.create_task(ask_over_new_connection(bridge, scenario("stall"), stream=True, metadata=metadata))
        await emulator.next_exchange()
        await eventually(lambda: emulator.exchanges[-1].events_sent)
        bridge.process.send_signal(signal.SIGTERM)
        status = await wait_for_status(client, admin, lambda status: "draining" in status["states"])
        assert status["serving"] is False
        bridge.process.send_signal(signal.SIGTERM)
        await bridge.wait_for_exit()
        assert (await held).failure is not None


async def wait_for_status(client, admin, fact):
    """Wait until a fact is true of what the page shows, and return that."""
    async with asyncio.timeout(WAIT_S):
        while not fact(status := (await client.get(f"http://{admin}/status.json")).json()):  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.05)
    return status


def count_calls(status):
    return {each["name"]: each["calls"] for each in status["callers"]}


def read_sample(page: str, sample: str) -> float | None:
    """Return the value of a sample on the metrics page, None if it is not there."""
    found = re.search(rf"^{re.escape(sample)} (\S+)$", page, re.MULTILINE)
    return float(found[1]) if found else None


async def wait_for_sample(client: httpx2.AsyncClient, admin: str, sample: str, value: float) -> None:
    """Wait until a sample on the metrics page has a value."""
    async with asyncio.timeout(WAIT_S):
        while read_sample((await client.get(f"http://{admin}/metrics")).text, sample) != value:  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.05)


async def wait_for_calls(client: httpx2.AsyncClient, admin: str, calls: int) -> float:
    """Wait until the metrics page counts so many calls: workers write their counters once a second."""
    count = 0.0
    async with asyncio.timeout(WAIT_S):
        while count < calls:
            page = (await client.get(f"http://{admin}/metrics")).text
            count = sum(map(float, re.findall(r"^ollm_bridge_calls_total\{.*\} (\S+)$", page, re.MULTILINE)))
            await asyncio.sleep(0.05)
    return count


async def test_calls_of_every_worker_finish_during_the_drain(emulator):
    async with start_bridge_process(emulator, workers=2) as bridge:
        calls = [asyncio.create_task(ask_over_new_connection(bridge, scenario("slow?delay_s=0.5"))) for _ in range(12)]
        await eventually(lambda: len(emulator.exchanges) == 12)
        bridge.process.send_signal(signal.SIGTERM)
        assert [answer.failure for answer in await asyncio.gather(*calls)] == [None] * 12
        assert await bridge.wait_for_exit() == 0


async def test_workers_whose_supervisor_is_killed_finish_their_calls_and_exit(emulator):
    async with start_bridge_process(emulator, workers=2) as bridge:
        pids = find_children(bridge.process.pid, b"spawn_main")
        calls = [asyncio.create_task(ask_over_new_connection(bridge, scenario("slow?delay_s=0.5"))) for _ in range(12)]
        await eventually(lambda: len(emulator.exchanges) == 12)
        bridge.process.kill()
        assert [answer.failure for answer in await asyncio.gather(*calls)] == [None] * 12
        await eventually(lambda: not any(map(is_running, pids)))
        await bridge.wait_for_exit()
        assert {json.loads(line)["event"] for line in bridge.log_lines} == {"started", "call", "draining", "stopped"}


TINY_DISK = 'mount -t tmpfs -o size=4k tmpfs "$1" && export TMPDIR="$1" && shift && exec "$@"'


async def test_workers_without_disk_space_for_shared_metrics_do_not_start(emulator, tmp_path):
    if why := describe_missing_namespaces():
        pytest.skip(why)
    code, out, err = await run_program_async(
        *("unshare", "-rm", "sh", "-c", TINY_DISK, "sh", str(tmp_path), *SERVE, "--workers", "2"),
        environment=build_bridge_environment(emulator.url),
    )
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("workers: cannot write the metrics that they share in ")
