"""Several workers on one port: all get calls, one that dies is replaced without harm to the others, all drain."""

import asyncio
import json
import os
import re
import signal
import sys
from pathlib import Path

import grpc
import httpx2
import pytest

from tests.conftest import WAIT_S, Bridge, chat, eventually, find_free_port, scenario
from tests.e2e.process import describe_missing_namespaces, find_children, start_bridge_process

OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


async def ask_over_new_connection(bridge, request, **options):
    async with grpc.aio.insecure_channel(bridge.address, options=OWN_CONNECTION) as channel:
        return await Bridge(bridge.address, channel).ask(request, **options)


async def test_worker_killed_under_load_loses_only_its_own_calls(emulator):
    async with start_bridge_process(emulator, workers=2, drain_grace_s=5) as bridge:
        pids = find_children(bridge.process.pid, b"spawn_main")
        assert len(pids) == 2
        streams = [
            asyncio.create_task(ask_over_new_connection(bridge, scenario("pace?chunks=60&interval_ms=20"), stream=True))
            for _ in range(24)
        ]
        await eventually(lambda: sum(each.events_sent > 3 for each in emulator.exchanges) == 24)
        os.kill(pids[0], signal.SIGKILL)
        answers = await asyncio.gather(*streams)
        lost = [answer for answer in answers if answer.failure is not None]
        assert 0 < len(lost) < 24
        assert {answer.failure.code for answer in lost} == {"UNAVAILABLE"}
        assert all(len(answer.messages) >= 60 for answer in answers if answer.failure is None)
        await eventually(lambda: len(find_children(bridge.process.pid, b"spawn_main")) == 2)
        assert pids[0] not in find_children(bridge.process.pid, b"spawn_main")
        assert (await ask_over_new_connection(bridge, chat("Hi"), wait_for_ready=True, timeout=WAIT_S)).failure is None
        bridge.process.send_signal(signal.SIGTERM)
        assert await bridge.wait_for_exit() == 0
        assert "a worker died" in [json.loads(line)["event"] for line in bridge.log_lines]


async def test_metrics_of_all_workers_are_on_one_page(emulator):
    admin = f"127.0.0.1:{find_free_port()}"
    async with start_bridge_process(emulator, workers=2, admin_listen=admin) as bridge:
        for _ in range(20):
            assert (await ask_over_new_connection(bridge, chat("Hi"))).failure is None
        async with httpx2.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"http://{admin}/healthz")).status_code == 200
            assert await wait_for_calls(client, admin, 20) == 20
            os.kill(find_children(bridge.process.pid, b"spawn_main")[0], signal.SIGKILL)
            await eventually(lambda: "a worker died" in bridge.log)
            assert await wait_for_calls(client, admin, 20) == 20


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
        await eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
        await bridge.wait_for_exit()
        assert {json.loads(line)["event"] for line in bridge.log_lines} == {"call"}


TINY_DISK = 'mount -t tmpfs -o size=4k tmpfs "$1" && export TMPDIR="$1" && shift && exec "$@"'


async def test_workers_without_disk_space_for_shared_metrics_do_not_start(emulator, tmp_path):
    if why := describe_missing_namespaces():
        pytest.skip(why)
    process = await asyncio.create_subprocess_exec(
        *("unshare", "-rm", "sh", "-c", TINY_DISK, "sh", str(tmp_path), sys.executable, "-m", "bridge", "serve"),
        *("--upstream", emulator.url, "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--workers", "2"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        output, log = await process.communicate()
    assert (process.returncode, output) == (2, b"")
    assert log.startswith(b"workers: cannot write the metrics that they share in ")
