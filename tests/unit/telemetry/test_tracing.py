"""Whether calls are traced, without and with the extra, and that the end is not held up by a collector."""

import asyncio
import sys

import pytest

from bridge.settings import Settings, SettingsError
from bridge.telemetry.tracing import start_tracing
from tests.kit.spans import start_collector
from tests.kit.waiting import WAIT_S
from tests.unit.telemetry.records import RECORD, TRACEPARENT


async def test_without_an_endpoint_there_is_no_tracing_and_no_need_of_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "bridge.telemetry.spans", None)
    async with start_tracing(Settings(), "1") as tracer:
        assert tracer is None


async def test_missing_extra_is_an_error_of_the_settings(monkeypatch):
    monkeypatch.setitem(sys.modules, "bridge.telemetry.spans", None)
    with pytest.raises(SettingsError, match=r"tracing.endpoint: .*ollm-bridge\[tracing\]"):
        async with start_tracing(Settings(tracing={"endpoint": "http://127.0.0.1:4317"}), "1"):
            pass


async def test_spans_reach_a_collector_by_otlp_before_the_end():
    with start_collector() as collector:
        async with start_tracing(
            Settings(tracing={"endpoint": collector.url}), "1.2.3", export_timeout_s=WAIT_S
        ) as tracer:
            trace = tracer.start("StreamChatCompletion", [("traceparent", TRACEPARENT)])
            trace.upstream_headers()
            trace.end(RECORD)
    names = [span.name for span in collector.spans]
    assert sorted(names) == ["chat echo", "ollmbridge.v1.ChatCompletionService/StreamChatCompletion"]


HELD_UP_S = 15.0
"""Less than what OpenTelemetry itself waits for a collector at the end, 30 s."""


async def test_collector_that_does_not_answer_does_not_hold_up_the_end():
    with start_collector(held_s=HELD_UP_S) as collector:
        async with start_tracing(Settings(tracing={"endpoint": collector.url}), "1", export_timeout_s=0.1) as tracer:
            tracer.start("CreateChatCompletion", []).end(RECORD)
        assert collector.requests == []
        collector.released.set()


async def test_collector_that_is_gone_does_not_hold_up_the_end(closed_address):
    settings = Settings(tracing={"endpoint": f"http://{closed_address}"})
    async with asyncio.timeout(HELD_UP_S), start_tracing(settings, "1", export_timeout_s=0.1) as tracer:
        tracer.start("CreateChatCompletion", []).end(RECORD)
