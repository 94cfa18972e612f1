"""Who calls: tokens, limits of one caller, the queue, and the tags that tell the gateway who it was."""

import asyncio
import re

import pytest
from structlog.testing import capture_logs

from bridge.server.server import run_server
from bridge.settings import Settings, SettingsError
from tests.conftest import chat, eventually, scenario

STALL = "stall?headers=0"


def bearer(token):
    return [("authorization", f"Bearer {token}")]


@pytest.fixture
def tokens_file(tmp_path):
    path = tmp_path / "tokens"
    path.write_text("# team  token\nteam-a alpha-token\n\nteam-b beta-token\n")
    path.chmod(0o600)
    return path


@pytest.fixture
async def guarded(start_bridge, tokens_file):
    return await start_bridge(tokens_file=tokens_file, upstream={"api_key": "sk-ollm-own"}, tags={"identity": "team"})


async def test_token_of_the_list_calls_with_the_bridges_own_key(guarded, emulator):
    answer = await guarded.ask(chat("Hi"), metadata=bearer("beta-token"))
    assert answer.failure is None
    exchange = emulator.exchanges[-1]
    assert exchange.headers["authorization"] == "Bearer sk-ollm-own"
    assert exchange.tags == {"team": "team-b"}


REFUSED = {
    "none": [],
    "unknown": bearer("gamma-token"),
    "a name": bearer("team-a"),
    "basic": [("authorization", "Basic alpha-token")],
    "empty": bearer(""),
}


@pytest.mark.parametrize("metadata", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
async def test_caller_without_a_token_is_refused_before_the_upstream(guarded, emulator, metadata, stream):
    failure = (await guarded.ask(chat("Hi"), stream=stream, metadata=metadata)).failure
    assert (failure.code, failure.reason) == ("UNAUTHENTICATED", "CALLER_UNAUTHENTICATED")
    assert failure.info.domain == "ollmbridge"
    assert not re.search(r"(alpha|beta|gamma)-token|team-a", failure.message)
    assert not emulator.exchanges


async def test_tokens_are_reloaded_when_their_file_changes(guarded, tokens_file):
    tokens_file.write_text("team-c gamma-token\n")
    await succeed(guarded, metadata=bearer("gamma-token"))
    assert (await guarded.ask(chat("Hi"), metadata=bearer("alpha-token"))).failure.reason == "CALLER_UNAUTHENTICATED"
    with capture_logs() as lines:
        tokens_file.write_text("half a line of three\n")
        async with asyncio.timeout(30):
            while not any(line["log_level"] == "warning" for line in lines):
                assert (await guarded.ask(chat("Hi"), metadata=bearer("gamma-token"))).failure is None
    assert "tokens_file: expected NAME TOKEN in line 1" in str(lines)


async def succeed(bridge, **options):
    """Ask until a call succeeds: a file that has changed is reloaded within a second."""
    async with asyncio.timeout(30):
        while (await bridge.ask(chat("Hi"), **options)).failure is not None:
            pass


async def test_own_key_is_reloaded_when_its_file_changes(start_bridge, emulator, tmp_path):
    path = tmp_path / "key"
    path.write_text("sk-one\n")
    path.chmod(0o600)
    bridge = await start_bridge(upstream={"api_key_file": path})
    for key in ("sk-one", "sk-two"):
        path.write_text(f"{key}\n")
        async with asyncio.timeout(30):
            while not emulator.exchanges or emulator.exchanges[-1].headers["authorization"] != f"Bearer {key}":
                assert (await bridge.ask(chat("Hi"))).failure is None


UNUSABLE = {
    "three words": ("a b c\n", "expected NAME TOKEN in line 1, found 3 words"),
    "nothing": ("# nobody\n", "expected at least one line of NAME TOKEN"),
}


@pytest.mark.parametrize(("text", "expected"), UNUSABLE.values(), ids=UNUSABLE)
async def test_tokens_file_that_is_none_stops_the_start(tokens_file, text, expected):
    tokens_file.write_text(text)
    with pytest.raises(SettingsError, match=expected):
        async with run_server(Settings(listen="127.0.0.1:0", tokens_file=tokens_file, upstream={"api_key": "sk-own"})):
            pass


async def test_tokens_without_a_key_of_the_bridge_stop_the_start(tokens_file):
    with pytest.raises(SettingsError, match=r"tokens_file: expected upstream\.api_key"):
        async with run_server(Settings(listen="127.0.0.1:0", tokens_file=tokens_file)):
            pass


# Limits


async def test_one_caller_can_not_take_all_the_slots(start_bridge, emulator):
    bridge = await start_bridge(calls_max=10, calls_per_caller_max=1)
    stalled = asyncio.create_task(bridge.ask(scenario(STALL), metadata=bearer("sk-a"), timeout=30))
    await emulator.next_exchange()
    failure = (await bridge.ask(chat("Hi"), metadata=bearer("sk-a"))).failure
    assert (failure.code, failure.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    assert failure.details["RetryInfo"].retry_delay.seconds == 1
    assert failure.message == "too many calls in flight of one caller (calls_per_caller_max = 1)"
    assert (await bridge.ask(chat("Hi"), metadata=bearer("sk-b"))).failure is None
    stalled.cancel()
    await asyncio.gather(stalled, return_exceptions=True)
    await eventually(lambda: bridge.records.all and bridge.records.all[-1].code == "CANCELLED")
    assert (await bridge.ask(chat("Hi"), metadata=bearer("sk-a"))).failure is None


async def test_call_that_queues_gets_the_slot_that_comes_free(start_bridge, emulator):
    bridge = await start_bridge(calls_max=1, queue_max=1)
    first = asyncio.create_task(bridge.ask(scenario("slow?delay_s=0.3")))
    await emulator.next_exchange()
    second = asyncio.create_task(bridge.ask(chat("second")))
    third = (await bridge.ask(chat("third"))).failure
    if third is None:  # it was there before the second
        assert (await second).failure.reason == "OVERLOADED"
    else:
        assert third.reason == "OVERLOADED"
        assert third.message == "too many calls in flight (calls_max = 1, queue_max = 1)"
        assert (await second).failure is None
    assert (await first).failure is None


async def test_caller_who_leaves_the_queue_takes_no_slot_along(start_bridge, emulator):
    bridge = await start_bridge(calls_max=1, queue_max=5)
    first = asyncio.create_task(bridge.ask(scenario("slow?delay_s=0.3")))
    await emulator.next_exchange()
    assert (await bridge.ask(chat("Hi"), timeout=0.05)).failure.code == "DEADLINE_EXCEEDED"
    assert (await first).failure is None
    assert (await bridge.ask(chat("Hi"))).failure is None
    assert len(emulator.exchanges) == 2


# Tags


async def test_tags_are_added_where_the_caller_set_none_of_the_key(start_bridge, emulator):
    tags = {"fixed": {"cluster": "eu", "team": "none"}, "metadata": {"team": "x-team"}, "identity": "who"}
    bridge = await start_bridge(tags=tags)
    request = chat("Hi")
    request.ollm.tags["cluster"] = "mine"
    for stream in (False, True):
        assert (await bridge.ask(request, stream=stream, metadata=[("x-team", "search")])).failure is None
        assert emulator.exchanges[-1].tags == {"cluster": "mine", "team": "search"}
    assert (await bridge.ask(chat("Hi"))).failure is None
    assert emulator.exchanges[-1].tags == {"cluster": "eu", "team": "none"}


async def test_no_tags_are_sent_unless_configured(bridge, emulator):
    assert (await bridge.ask(chat("Hi"))).failure is None
    assert "ollm::tags" not in emulator.exchanges[-1].json
