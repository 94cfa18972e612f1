"""Envoy's own rules at the edge: the rate of calls, and the origins of pages that may call."""

import json
import time

import httpx2

from tests.kit.client import chat
from tests.kit.envoy import CONFIGURATION, get_connection_manager, read_yaml, run_envoy

METHOD = "/ollmbridge.v1.ChatCompletionService/StreamChatCompletion"


def limit_rate(**bucket):
    """Return an edit that sets the token bucket."""

    def edit(configuration):
        filters = get_connection_manager(configuration)["http_filters"]
        (limit,) = [each["typed_config"] for each in filters if each["name"] == "envoy.filters.http.local_ratelimit"]
        limit["token_bucket"] |= bucket

    return edit


def build_preflight(origin):
    requested = {"access-control-request-method": "POST", "access-control-request-headers": "content-type,x-grpc-web"}
    return {"origin": origin} | requested


async def test_call_above_the_rate_is_refused_by_envoy_with_pushback(served_bridge, emulator, tmp_path):
    edit = limit_rate(max_tokens=2, tokens_per_fill=1, fill_interval="60s")
    async with run_envoy(tmp_path, served_bridge.address, edit=edit) as envoy:
        answers = [await envoy.ask(chat(), metadata=[("x-request-id", str(number))]) for number in range(3)]
        assert [answer.failure for answer in answers[:2]] == [None, None]
        assert answers[2].failure.code == "RESOURCE_EXHAUSTED"
        assert answers[2].failure.trailers["grpc-retry-pushback-ms"] == "1000"
        assert len(emulator.exchanges) == 2
        assert (await envoy.wait_for_log_line("2"))["grpc_status"] == "RESOURCE_EXHAUSTED"


async def test_client_with_a_retry_policy_waits_for_its_turn(served_bridge, tmp_path):
    policy = {"maxAttempts": 5, "initialBackoff": "0.01s", "maxBackoff": "0.01s", "backoffMultiplier": 1}
    policy["retryableStatusCodes"] = ["RESOURCE_EXHAUSTED"]
    config = json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": policy}]})
    edit = limit_rate(max_tokens=1, tokens_per_fill=1, fill_interval="1s")
    options = {"grpc.service_config": config}
    async with run_envoy(tmp_path, served_bridge.address, edit=edit, channel=options) as envoy:
        assert (await envoy.ask(chat())).failure is None
        began_at = time.monotonic()
        assert (await envoy.ask(chat(), timeout=60)).failure is None
        assert time.monotonic() - began_at > 0.9


async def test_pages_of_known_origins_may_call_and_others_not(served_bridge, emulator, tmp_path):
    edit = limit_rate(max_tokens=1, tokens_per_fill=1, fill_interval="60s")
    async with (
        run_envoy(tmp_path, served_bridge.address, edit=edit) as envoy,
        httpx2.AsyncClient(base_url=f"http://{envoy.address}", timeout=60, trust_env=False) as browser,
    ):
        origins = read_yaml(CONFIGURATION)
        (host,) = get_connection_manager(origins)["route_config"]["virtual_hosts"]
        (policy,) = host["typed_per_filter_config"].values()
        known = [each["exact"] for each in policy["allow_origin_string_match"]]
        for origin in known * 3:  # a preflight uses no token
            answer = await browser.options(METHOD, headers=build_preflight(origin))
            assert answer.headers["access-control-allow-origin"] == origin
            assert {"content-type", "x-grpc-web"} <= set(answer.headers["access-control-allow-headers"].split(", "))
        for origin in ("http://127.0.0.1:8001", "https://127.0.0.1:8000", "null", known[0] + ".evil.example"):
            answer = await browser.options(METHOD, headers=build_preflight(origin))
            assert "access-control-allow-origin" not in answer.headers
        assert (await envoy.ask(chat())).failure is None
    assert len(emulator.exchanges) == 1
