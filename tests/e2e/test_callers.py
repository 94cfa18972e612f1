"""Callers: tokens, limits of one caller, the queue, and the tags by which the gateway knows the caller."""

import asyncio
import re

import pytest
from structlog.testing import capture_logs

from bridge.server.server import run_server
from bridge.settings import Settings, SettingsError
from tests.conftest import chat, eventually, scenario

STALL = "stall?headers=0"


def authorize(token):
    return [("authorization", f"Bearer {token}")]


@pytest.fixture
def tokens_file(tmp_path):
    path = tmp_path / "tokens"
    path.write_text("# team  token\nteam-a alpha-token\n\nteam-b beta-token\n")
    path.chmod(0o600)
    return path


@pytest.fixture
async def token_bridge(start_bridge, tokens_file):
    return await start_bridge(tokens_file=tokens_file, upstream={"api_key": "sk-ollm-own"}, tags={"identity": "team"})


async def test_call_with_a_token_of_the_file_uses_the_bridges_own_key(token_bridge, emulator):
    answer = await token_bridge.ask(chat("Hi"), metadata=authorize("beta-token"))
    assert answer.failure is None
    exchange = emulator.exchanges[-1]
    assert exchange.headers["authorization"] == "Bearer sk-ollm-own"
    assert exchange.tags == {"team": "team-b"}


REFUSED = {
    "none": [],
    "unknown": authorize("gamma-token"),
    "a name": authorize("team-a"),
    "basic": [("authorization", "Basic alpha-token")],
    "empty": authorize(""),
}


@pytest.mark.parametrize("metadata", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
async def test_caller_without_a_token_is_refused_before_the_upstream(token_bridge, emulator, metadata, stream):
    failure = (await token_bridge.ask(chat("Hi"), stream=stream, metadata=metadata)).failure
    assert (failure.code, failure.reason) == ("UNAUTHENTICATED", "CALLER_UNAUTHENTICATED")
    assert failure.info.domain == "ollmbridge"
    assert not re.search(r"(alpha|beta|gamma)-token|team-a", failure.message)
    assert not emulator.exchanges


async def test_tokens_are_reloaded_when_their_file_changes(token_bridge, tokens_file):
    tokens_file.write_text("team-c gamma-token\n")
    await wait_for_success(token_bridge, metadata=authorize("gamma-token"))
    assert (
        await token_bridge.ask(chat("Hi"), metadata=authorize("alpha-token"))
    ).failure.reason == "CALLER_UNAUTHENTICATED"
    with capture_logs() as lines:
        tokens_file.write_text("a line of words\n")
        async with asyncio.timeout(30):
            while not any(line["log_level"] == "warning" for line in lines):
                assert (await token_bridge.ask(chat("Hi"), metadata=authorize("gamma-token"))).failure is None
    assert "tokens_file: expected NAME TOKEN in line 1" in str(lines)


async def wait_for_success(bridge, **options):
    """Repeat a call until it succeeds: a changed file is reloaded within a second."""
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
async def test_file_without_valid_tokens_is_an_error_at_the_start(tokens_file, text, expected):
    tokens_file.write_text(text)
    with pytest.raises(SettingsError, match=expected):
        async with run_server(Settings(listen="127.0.0.1:0", tokens_file=tokens_file, upstream={"api_key": "sk-own"})):
            pass


async def test_tokens_without_a_key_of_the_bridge_are_an_error_at_the_start(tokens_file):
    with pytest.raises(SettingsError, match=r"tokens_file: expected upstream\.api_key"):
        async with run_server(Settings(listen="127.0.0.1:0", tokens_file=tokens_file)):
            pass


# Limits


async def test_one_caller_cannot_take_all_the_slots(start_bridge, emulator):
    bridge = await start_bridge(calls_max=10, calls_per_caller_max=1)
    stalled = asyncio.create_task(bridge.ask(scenario(STALL), metadata=authorize("sk-a"), timeout=30))
    await emulator.next_exchange()
    failure = (await bridge.ask(chat("Hi"), metadata=authorize("sk-a"))).failure
    assert (failure.code, failure.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    assert failure.details["RetryInfo"].retry_delay.seconds == 1
    assert failure.message == "too many calls in flight of one caller (calls_per_caller_max = 1)"
    assert (await bridge.ask(chat("Hi"), metadata=authorize("sk-b"))).failure is None
    stalled.cancel()
    await asyncio.gather(stalled, return_exceptions=True)
    await eventually(lambda: bridge.records.all and bridge.records.all[-1].code == "CANCELLED")
    assert (await bridge.ask(chat("Hi"), metadata=authorize("sk-a"))).failure is None


async def test_call_in_the_queue_gets_the_next_free_slot(start_bridge, emulator):
    bridge = await start_bridge(calls_max=1, queue_max=1)
    stalled = bridge.stub.CreateChatCompletion(scenario(STALL))
    await emulator.next_exchange()
    calls = [asyncio.create_task(bridge.ask(chat("Hi"))) for _ in range(2)]
    (refused,), (queued,) = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    failure = refused.result().failure
    assert failure.reason == "OVERLOADED"
    assert failure.message == "too many calls in flight (calls_max = 1, queue_max = 1)"
    stalled.cancel()
    assert (await queued).failure is None


async def test_call_whose_deadline_passes_in_the_queue_frees_its_place(start_bridge, emulator):
    bridge = await start_bridge(calls_max=1, queue_max=1)
    stalled = bridge.stub.CreateChatCompletion(scenario(STALL))
    await emulator.next_exchange()
    for _ in range(2):
        assert (await bridge.ask(chat("Hi"), timeout=0.2)).failure.code == "DEADLINE_EXCEEDED"
        assert (await bridge.records.next()).code == "DEADLINE_EXCEEDED"
    stalled.cancel()
    assert (await bridge.records.next()).code == "CANCELLED"
    assert (await bridge.ask(chat("Hi"))).failure is None
    assert len(emulator.exchanges) == 2


# Tags


async def test_tag_is_added_if_the_caller_set_none_of_that_key(start_bridge, emulator):
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
