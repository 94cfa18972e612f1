"""Several workers on one port: all are used, one that dies is replaced and takes no others' calls along, all drain."""

import asyncio
import json
import os
import re
import signal
import socket
import sys
from pathlib import Path

import grpc
import httpx2
import pytest

from tests.conftest import Bridge, chat, eventually, scenario
from tests.e2e.process import children, no_namespaces, served

OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


async def over_own_connection(bridge, request, **options):
    async with grpc.aio.insecure_channel(bridge.address, options=OWN_CONNECTION) as channel:
        return await Bridge(bridge.address, channel).ask(request, **options)


async def test_worker_killed_under_load_costs_its_own_calls_alone(emulator):
    async with served(emulator, workers=2, drain_grace_s=5) as bridge:
        pids = children(bridge.process.pid, b"spawn_main")
        assert len(pids) == 2
        streams = [
            asyncio.create_task(over_own_connection(bridge, scenario("pace?chunks=60&interval_ms=20"), stream=True))
            for _ in range(24)
        ]
        await eventually(lambda: sum(each.events_sent > 3 for each in emulator.exchanges) == 24)
        os.kill(pids[0], signal.SIGKILL)
        answers = await asyncio.gather(*streams)
        lost = [answer for answer in answers if answer.failure is not None]
        assert 0 < len(lost) < 24
        assert {answer.failure.code for answer in lost} == {"UNAVAILABLE"}
        assert all(len(answer.messages) >= 60 for answer in answers if answer.failure is None)
        await eventually(lambda: len(children(bridge.process.pid, b"spawn_main")) == 2)
        assert pids[0] not in children(bridge.process.pid, b"spawn_main")
        assert (await over_own_connection(bridge, chat("Hi"), wait_for_ready=True, timeout=10)).failure is None
        bridge.process.send_signal(signal.SIGTERM)
        assert await bridge.ended() == 0
        assert "a worker died" in [json.loads(line)["event"] for line in bridge.said]


async def test_metrics_of_all_workers_are_on_one_page(emulator):
    with socket.create_server(("127.0.0.1", 0)) as free:
        admin = f"127.0.0.1:{free.getsockname()[1]}"
    async with served(emulator, workers=2, admin_listen=admin) as bridge:
        for _ in range(20):
            assert (await over_own_connection(bridge, chat("Hi"))).failure is None
        async with httpx2.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"http://{admin}/healthz")).status_code == 200
            assert await wait_for_calls(client, admin, 20) == 20
            os.kill(children(bridge.process.pid, b"spawn_main")[0], signal.SIGKILL)
            await eventually(lambda: "a worker died" in bridge.log, timeout_s=30)
            assert await wait_for_calls(client, admin, 20) == 20


async def wait_for_calls(client: httpx2.AsyncClient, admin: str, calls: int) -> float:
    """Wait until the metrics page counts so many calls: workers write what they count once a second."""
    count = 0.0
    async with asyncio.timeout(30):
        while count < calls:
            page = (await client.get(f"http://{admin}/metrics")).text
            count = sum(map(float, re.findall(r"^ollm_bridge_calls_total\{.*\} (\S+)$", page, re.MULTILINE)))
            await asyncio.sleep(0.05)
    return count


async def test_drain_lets_the_calls_of_every_worker_finish(emulator):
    async with served(emulator, workers=2) as bridge:
        calls = [asyncio.create_task(over_own_connection(bridge, scenario("slow?delay_s=0.5"))) for _ in range(12)]
        await eventually(lambda: len(emulator.exchanges) == 12)
        bridge.process.send_signal(signal.SIGTERM)
        assert [answer.failure for answer in await asyncio.gather(*calls)] == [None] * 12
        assert await bridge.ended() == 0


async def test_workers_whose_supervisor_is_killed_let_calls_finish_and_end_too(emulator):
    async with served(emulator, workers=2) as bridge:
        pids = children(bridge.process.pid, b"spawn_main")
        calls = [asyncio.create_task(over_own_connection(bridge, scenario("slow?delay_s=0.5"))) for _ in range(12)]
        await eventually(lambda: len(emulator.exchanges) == 12)
        bridge.process.kill()
        assert [answer.failure for answer in await asyncio.gather(*calls)] == [None] * 12
        await eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), timeout_s=10)
        await bridge.ended()
        assert {json.loads(line)["event"] for line in bridge.said} == {"call"}


TINY_DISK = 'mount -t tmpfs -o size=4k tmpfs "$1" && export TMPDIR="$1" && shift && exec "$@"'


async def test_workers_without_room_for_what_they_share_do_not_start(emulator, tmp_path):
    if why := no_namespaces():
        pytest.skip(why)
    process = await asyncio.create_subprocess_exec(
        *("unshare", "-rm", "sh", "-c", TINY_DISK, "sh", str(tmp_path), sys.executable, "-m", "bridge", "serve"),
        *("--upstream", emulator.url, "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--workers", "2"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(50):
        said, log = await process.communicate()
    assert (process.returncode, said) == (2, b"")
    assert log.startswith(b"workers: cannot write the metrics that they share in ")
