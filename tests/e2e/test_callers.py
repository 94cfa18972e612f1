"""Callers: tokens, limits of one caller, the queue, and the tags by which the gateway knows the caller."""

import asyncio
import re

import pytest
from structlog.testing import capture_logs

from bridge.server.server import run_server
from bridge.settings import Settings, SettingsError
from tests.kit.client import build_deadline, chat, scenario
from tests.kit.http2 import (
    OPENING,
    RST_STREAM,
    encode_call,
    encode_connection,
    encode_frame,
    encode_message,
    exchange_bytes,
    parse_grpc_status,
    parse_trailers,
)
from tests.kit.statuses import check_overloaded
from tests.kit.waiting import eventually

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


@pytest.mark.parametrize("text", ["", "# nobody\n"], ids=["empty", "comments alone"])
async def test_tokens_are_revoked_when_their_file_has_none(token_bridge, tokens_file, text):
    assert (await token_bridge.ask(chat("Hi"), metadata=authorize("alpha-token"))).failure is None
    tokens_file.write_text(text)
    await wait_for_refusal(token_bridge, metadata=authorize("alpha-token"))


async def test_tokens_do_not_outlive_their_file_for_ever(start_bridge, tokens_file):
    bridge = await start_bridge(tokens_file=tokens_file, reload_grace_s=0.5, upstream={"api_key": "sk-own"})
    assert (await bridge.ask(chat("Hi"), metadata=authorize("alpha-token"))).failure is None
    tokens_file.unlink()
    failure = await wait_for_refusal(bridge, metadata=authorize("alpha-token"))
    assert "reload_grace_s (0.5 s)" in failure.message


async def test_key_does_not_outlive_its_file_for_ever(start_bridge, tmp_path):
    (path := tmp_path / "key").write_text("sk-one\n")
    path.chmod(0o600)
    bridge = await start_bridge(reload_grace_s=0.5, upstream={"api_key_file": path})
    path.unlink()
    failure = await wait_for_refusal(bridge)
    assert (failure.code, failure.reason) == ("INTERNAL", "CREDENTIALS_REJECTED")


async def wait_for_refusal(bridge, **options):
    """Repeat a call until it fails, and return the failure."""
    async with asyncio.timeout(30):
        while (answer := await bridge.ask(chat("Hi"), **options)).failure is None:
            pass
    return answer.failure


async def test_token_of_a_file_that_is_cut_in_place_stays_out(token_bridge, tokens_file):
    with capture_logs() as lines:
        tokens_file.write_text("team-a alpha-tok")
        async with asyncio.timeout(30):
            while not any(line["log_level"] == "warning" for line in lines):
                assert (await token_bridge.ask(chat("Hi"), metadata=authorize("alpha-token"))).failure is None
    cut = await token_bridge.ask(chat("Hi"), metadata=authorize("alpha-tok"))
    assert cut.failure.reason == "CALLER_UNAUTHENTICATED"


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


async def test_one_caller_cannot_take_all_the_slots(start_bridge, emulator, tokens_file):
    bridge = await start_bridge(
        calls_max=10, calls_per_caller_max=1, tokens_file=tokens_file, upstream={"api_key": "sk-own"}
    )
    alpha, beta = authorize("alpha-token"), authorize("beta-token")
    stalled = asyncio.create_task(bridge.ask(scenario(STALL), metadata=alpha, timeout=30))
    await emulator.next_exchange()
    failure = (await bridge.ask(chat("Hi"), metadata=alpha)).failure
    assert (failure.code, failure.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    assert failure.details["RetryInfo"].retry_delay.seconds == 1
    assert failure.message == "too many calls in flight of one caller (calls_per_caller_max = 1)"
    assert (await bridge.ask(chat("Hi"), metadata=beta)).failure is None
    stalled.cancel()
    await asyncio.gather(stalled, return_exceptions=True)
    await eventually(lambda: bridge.records.all and bridge.records.all[-1].code == "CANCELLED")
    assert (await bridge.ask(chat("Hi"), metadata=alpha)).failure is None


ENGINES = pytest.mark.parametrize("engine", ["grpcio", "native"])


async def ask_at_the_limit(bridge, engine, count, **options):
    """Make calls, each of which must be refused for its caller's limit."""
    for _ in range(count):
        failure = (await bridge.ask(chat("Hi"), **options)).failure
        assert failure.verdict == ("RESOURCE_EXHAUSTED", "OVERLOADED")
        assert failure.message == "too many calls in flight of one caller (calls_per_caller_max = 1)"
        assert failure.info.domain == "ollmbridge"
        assert failure.details["RetryInfo"].retry_delay.seconds == 1
        assert failure.pushback_ms == "1000"
        assert ("RequestInfo" in failure.details) == (engine == "grpcio")


def count_refused(bridge) -> int:
    return sum(record.reason == "OVERLOADED" for record in bridge.records.all)


@ENGINES
@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
async def test_caller_with_a_token_above_the_limit_is_refused_and_others_are_not(
    start_bridge, emulator, tokens_file, engine, stream
):
    bridge = await start_bridge(
        calls_per_caller_max=1, tokens_file=tokens_file, upstream={"api_key": "sk-own"}, server={"engine": engine}
    )
    alpha, beta = authorize("alpha-token"), authorize("beta-token")
    with capture_logs() as lines:
        stalled = bridge.stub.CreateChatCompletion(scenario(STALL), metadata=alpha, timeout=30)
        await emulator.next_exchange()
        await ask_at_the_limit(bridge, engine, 5, metadata=alpha, stream=stream)
        for metadata in ([], authorize("gamma-token")):
            failure = (await bridge.ask(chat("Hi"), metadata=metadata, stream=stream)).failure
            assert failure.verdict == ("UNAUTHENTICATED", "CALLER_UNAUTHENTICATED")
        assert (await bridge.ask(chat("Hi"), metadata=beta, stream=stream)).failure is None
        if engine == "native":  # refused before they run: in the log in sum, without records
            await eventually(lambda: sum(each["count"] for each in lines if "last_caller" in each) == 5)
            assert {each["last_caller"] for each in lines if "last_caller" in each} == {"name team-a"}
    assert count_refused(bridge) == (5 if engine == "grpcio" else 0)
    stalled.cancel()
    await eventually(lambda: "CANCELLED" in {record.code for record in bridge.records.all})
    assert (await bridge.ask(chat("Hi"), metadata=alpha, stream=stream)).failure is None


@ENGINES
async def test_caller_without_a_token_above_the_limit_is_refused_whatever_connection_it_uses(
    start_bridge, emulator, engine
):
    bridge = await start_bridge(calls_per_caller_max=1, server={"engine": engine})
    stalled = bridge.stub.CreateChatCompletion(scenario(STALL), timeout=30)
    await emulator.next_exchange()
    await ask_at_the_limit(bridge, engine, 2)
    answer = await exchange_bytes(bridge.address, encode_connection(chat("Hi")))
    assert parse_grpc_status(answer) == 8
    assert count_refused(bridge) == (3 if engine == "grpcio" else 0)
    stalled.cancel()
    await eventually(lambda: "CANCELLED" in {record.code for record in bridge.records.all})
    assert (await bridge.ask(chat("Hi"))).failure is None


async def test_burst_of_one_caller_starts_as_many_calls_as_its_limit_allows(start_bridge, emulator, tokens_file):
    bridge = await start_bridge(
        calls_per_caller_max=2, tokens_file=tokens_file, upstream={"api_key": "sk-own"}, server={"engine": "native"}
    )
    stall = encode_message(scenario(STALL).SerializeToString())

    def call(number, token):
        return encode_call(stall, (b"authorization", b"Bearer %b-token" % token), stream=number)

    burst = b"".join(call(number, b"alpha") for number in range(1, 80, 2))
    others = call(81, b"gamma") + encode_call(
        encode_message(chat("Hi").SerializeToString()), (b"authorization", b"Bearer beta-token"), stream=83
    )
    answer = await exchange_bytes(bridge.address, OPENING + burst + others, last_stream=83)
    for number in range(5, 80, 2):
        check_overloaded(
            parse_trailers(answer, number), b"too many calls in flight of one caller (calls_per_caller_max = 2)"
        )
    assert parse_trailers(answer, 81)[b"grpc-status"] == b"16"
    assert parse_trailers(answer, 83)[b"grpc-status"] == b"0"
    await eventually(lambda: len(bridge.records.all) == 4)
    assert sorted(record.code for record in bridge.records.all) == ["CANCELLED", "CANCELLED", "OK", "UNAUTHENTICATED"]


async def test_caller_at_the_limit_may_cancel_a_call_and_make_another_one_in_one_segment(start_bridge, emulator):
    bridge = await start_bridge(calls_per_caller_max=1, server={"engine": "native"})
    host, _, port = bridge.address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(OPENING + encode_call(encode_message(scenario(STALL).SerializeToString())))
    await emulator.next_exchange()
    reset = encode_frame(RST_STREAM, 0, 1, (8).to_bytes(4))
    writer.write(reset + encode_call(encode_message(chat("Hi").SerializeToString()), stream=3))
    assert [(await bridge.records.next()).code for _ in range(2)] == ["CANCELLED", "OK"]
    writer.close()


async def test_keys_that_nobody_has_checked_make_no_new_caller(start_bridge, emulator):
    bridge = await start_bridge(calls_per_caller_max=1)
    stalled = bridge.stub.CreateChatCompletion(scenario(STALL), metadata=authorize("sk-a"))
    await emulator.next_exchange()
    failure = (await bridge.ask(chat("Hi"), metadata=authorize("sk-b"))).failure
    assert failure.message == "too many calls in flight of one caller (calls_per_caller_max = 1)"
    stalled.cancel()


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
        assert (await bridge.ask(chat("Hi"), metadata=build_deadline(2))).failure.code == "DEADLINE_EXCEEDED"
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


@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
@pytest.mark.parametrize("form", ["tags", "extra_json", "ollm.extra_json"])
async def test_tag_of_the_identity_replaces_the_callers_own(token_bridge, emulator, form, stream):
    request = chat("Hi")
    if form == "tags":
        request.ollm.tags["team"] = "another"
        request.ollm.tags["own"] = "kept"
    else:
        extra, key = (request.extra_json, "ollm::tags") if form == "extra_json" else (request.ollm.extra_json, "tags")
        extra[key] = '{"team": "another", "own": "kept"}'
    answer = await token_bridge.ask(request, stream=stream, metadata=authorize("beta-token"))
    assert answer.failure is None
    assert emulator.exchanges[-1].tags == {"team": "team-b", "own": "kept"}


async def test_tags_of_a_shape_that_hides_the_identity_are_refused(token_bridge, emulator):
    request = chat("Hi", extra_json={"ollm::tags": "[]"})
    failure = (await token_bridge.ask(request, metadata=authorize("beta-token"))).failure
    assert failure.reason == "INVALID_REQUEST"
    assert failure.details["BadRequest"].field_violations[0].field == 'extra_json["ollm::tags"]'
    assert not emulator.exchanges


async def test_no_tags_are_sent_unless_configured(bridge, emulator):
    assert (await bridge.ask(chat("Hi"))).failure is None
    assert "ollm::tags" not in emulator.exchanges[-1].json


SEARCH, EVIL = "spiffe://cluster.local/ns/search/sa/indexer", "spiffe://cluster.local/ns/evil/sa/m"
XFCC = "x-forwarded-client-cert"


def forward(identity):
    return [(XFCC, f'By=spiffe://cluster.local/ns/llm/sa/ollm-bridge;Hash=0a;Subject="";URI={identity}')]


async def test_identity_of_a_mesh_cannot_be_forged_while_no_setting_trusts_it(start_bridge, emulator):
    bridge = await start_bridge(tags={"identity": "who"})
    forged = [*forward(SEARCH), ("l5d-client-id", "indexer.search.serviceaccount.identity.linkerd.cluster.local")]
    assert (await bridge.ask(chat("Hi"), metadata=forged)).failure is None
    assert (await bridge.records.next()).caller == ""
    assert "who" not in emulator.exchanges[-1].tags
    assert XFCC not in emulator.exchanges[-1].headers


async def test_mesh_names_the_caller_if_a_setting_trusts_its_proxy(start_bridge, emulator):
    mesh = {"identity_header": XFCC, "allowed_identities": [SEARCH]}
    bridge = await start_bridge(mesh=mesh, tags={"identity": "who"})
    assert (await bridge.ask(chat("Hi"), metadata=forward(SEARCH))).failure is None
    assert (await bridge.records.next()).caller == SEARCH
    assert emulator.exchanges[-1].tags == {"who": SEARCH}
    assert XFCC not in emulator.exchanges[-1].headers


@pytest.mark.parametrize(
    ("proxies", "metadata", "reason"),
    [
        pytest.param(["127.0.0.0/8"], [], "CALLER_UNAUTHENTICATED", id="nobody is named"),
        pytest.param(["127.0.0.0/8"], forward(EVIL), "CALLER_DENIED", id="not on the list"),
        pytest.param(["127.0.0.0/8"], forward(SEARCH) + forward(EVIL), "CALLER_UNAUTHENTICATED", id="forged beside"),
        pytest.param(["10.0.0.9"], forward(SEARCH), "CALLER_UNAUTHENTICATED", id="not from the proxy"),
    ],
)
async def test_call_that_a_mesh_does_not_vouch_for_is_refused(start_bridge, emulator, proxies, metadata, reason):
    mesh = {"identity_header": XFCC, "allowed_identities": [SEARCH], "proxies": proxies}
    bridge = await start_bridge(mesh=mesh)
    assert (await bridge.ask(chat("Hi"), metadata=metadata)).failure.reason == reason
    assert not emulator.exchanges
