"""What the log says of a process's life: start, reload, drain, end; and that it says why a call has failed."""

import asyncio
import contextlib
import json
import re
import signal
import ssl

import httpx2
import pytest

from tests.kit.bridges import start_bridge_process
from tests.kit.certificates import Certificates
from tests.kit.client import chat, scenario
from tests.kit.upstreams import start_server
from tests.kit.waiting import eventually


def read_events(bridge) -> list[dict]:
    """Return the lines of the log that are no calls, by their time: those of several processes come in any order."""
    lines = [json.loads(line) for line in bridge.log_lines if line.startswith("{")]
    return sorted((line for line in lines if line["event"] != "call"), key=lambda line: line["timestamp"])


@pytest.mark.parametrize("workers", [1, 2])
async def test_start_drain_and_end_are_in_the_log(emulator, workers):
    async with start_bridge_process(emulator, workers=workers, drain_grace_s=0.1) as bridge:
        call = asyncio.create_task(bridge.ask(scenario("stall?headers=0")))
        await emulator.next_exchange()
        bridge.process.send_signal(signal.SIGTERM)
        assert (await call).failure.reason == "DRAINING"
        assert await bridge.wait_for_exit() == 0
    started, *others = read_events(bridge)
    assert (started["event"], started["workers"], started["listen"]) == ("started", workers, bridge.address)
    assert (started["version"], started["upstream"]) == ("0.1.0", emulator.url)
    assert started["admin_listen"].startswith("127.0.0.1:")
    draining = [line for line in others if line["event"] == "draining"]
    assert sum(line.get("in_flight", 0) for line in draining) == 1
    assert {line["grace_s"] for line in draining} == {0.1}
    stopped = [line for line in others if line["event"] == "stopped"]
    assert sum(line.get("interrupted", 0) for line in stopped) == 1
    assert len(draining) == len(stopped) == (1 if workers == 1 else 3)
    assert others[-1] is stopped[-1]


async def test_second_signal_is_in_the_log(emulator):
    async with start_bridge_process(emulator, drain_grace_s=60) as bridge:
        call = asyncio.create_task(bridge.ask(scenario("stall?headers=0")))
        await emulator.next_exchange()
        bridge.process.send_signal(signal.SIGINT)
        await eventually(lambda: '"draining"' in bridge.log)
        bridge.process.send_signal(signal.SIGINT)
        assert await bridge.wait_for_exit() == 1
        await call
    assert read_events(bridge)[-1]["event"] == "stopped at once by a second signal: calls in flight are cut"


@pytest.mark.parametrize("workers", [1, 2])
async def test_hangup_reloads_the_files_and_ends_nothing(emulator, workers, tmp_path):
    certificates = Certificates(tmp_path)
    async with start_bridge_process(
        emulator, workers=workers, tls__cert_file=certificates.cert_file, tls__key_file=certificates.key_file
    ) as bridge:
        certificates.renew()
        bridge.process.send_signal(signal.SIGHUP)
        await eventually(lambda: bridge.log.count('"file reloaded"') == workers)
        certificates.cert_file.write_bytes(b"garbage")
        bridge.process.send_signal(signal.SIGHUP)
        await eventually(lambda: bridge.log.count("a changed file can't be used") == workers)
        bridge.process.send_signal(signal.SIGTERM)
        assert await bridge.wait_for_exit() == 0
    reloaded = [line for line in read_events(bridge) if line["event"] == "file reloaded"]
    assert all("tls.cert_file expires" in line for line in reloaded)


async def test_log_says_why_a_gateway_cannot_be_reached(emulator):
    async with start_server(lambda _peer: asyncio.sleep(0)) as gone:
        pass
    async with start_bridge_process(gone, log__level="warning") as bridge:
        answer = await bridge.ask(chat())
        await eventually(lambda: bridge.calls)
    (line,) = bridge.calls
    assert line["level"] == "warning"
    assert line["detail"] == answer.failure.message == "can't connect to the gateway: connection refused"


@pytest.mark.parametrize(
    ("settings", "port"), [({"server__engine": "native"}, "listen"), ({"web_listen": "127.0.0.1:0"}, "web_listen")]
)
async def test_failed_handshakes_are_counted_by_reason_and_logged_once(emulator, tmp_path, settings, port):
    certificates = Certificates(tmp_path)
    settings |= {"tls__cert_file": certificates.cert_file, "tls__key_file": certificates.key_file}
    async with start_bridge_process(emulator, tls__client_ca_file=certificates.ca_file, **settings) as bridge:
        await eventually(lambda: "started" in bridge.log)
        (started,) = [line for line in read_events(bridge) if line["event"] == "started"]
        host, _, number = started[port].rpartition(":")
        client = ssl.create_default_context(cafile=certificates.ca_file)
        for context in (None, None, client):
            with contextlib.suppress(ssl.SSLError, ConnectionError):
                reader, writer = await asyncio.open_connection(
                    host, int(number), ssl=context, server_hostname="localhost" if context else None
                )
                writer.write(b"GET / HTTP/1.1\r\n\r\n")
                await reader.read()
                writer.close()
        await eventually(lambda: "TLS handshakes of callers failed" in bridge.log)
        async with httpx2.AsyncClient(trust_env=False) as browser:
            page = (await browser.get(f"http://{bridge.admin_address}/metrics")).text
    failures = dict(
        re.findall(r'^ollm_bridge_tls_handshake_failures_total\{reason="(\w+)"\} (\S+)$', page, re.MULTILINE)
    )
    assert failures == {"HTTP_REQUEST": "2.0", "PEER_DID_NOT_RETURN_A_CERTIFICATE": "1.0"}
    (line,) = [line for line in read_events(bridge) if line["event"] == "TLS handshakes of callers failed"]
    assert (line["count"], line["reasons"]) == (1, {"HTTP_REQUEST": 1})
