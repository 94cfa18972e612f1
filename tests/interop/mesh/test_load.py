"""Envoy's client-side weighted round robin balances by the reports of the load (ORCA) in the trailers of calls."""

import asyncio
import contextlib
from collections import Counter

from tests.kit.bridges import start_bridge_process
from tests.kit.client import scenario
from tests.kit.envoy import get_cluster, run_envoy

WEIGHTED = "envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin"
AT_ONCE = 10
CALLS = 600
SMALL, LARGE = 40, 400


def balance_by_reports(configuration):
    cluster = get_cluster(configuration)
    cluster.pop("lb_policy", None)
    policy = {"@type": f"type.googleapis.com/{WEIGHTED}", "blackout_period": "0.1s", "weight_update_period": "0.1s"}
    name = "envoy.load_balancing_policies.client_side_weighted_round_robin"
    extension = {"typed_extension_config": {"name": name, "typed_config": policy}}
    cluster["load_balancing_policy"] = {"policies": [extension]}


async def share_of_the_large_one(emulator, folder, **settings):
    """Return which part of the later calls goes to the bridge that has room for ten times as many."""
    async with contextlib.AsyncExitStack() as stack:
        small, large = [
            await stack.enter_async_context(start_bridge_process(emulator, calls_max=calls_max, **settings))
            for calls_max in (SMALL, LARGE)
        ]
        envoy = await stack.enter_async_context(
            run_envoy(folder, small.address, large.address, edit=balance_by_reports)
        )
        calls = iter(range(CALLS))

        async def call():
            for number in calls:
                request_id = str(number)
                answer = await envoy.ask(scenario("slow?delay_s=0.02"), metadata=[("x-request-id", request_id)])
                assert answer.failure is None

        await asyncio.gather(*(call() for _ in range(AT_ONCE)))
        lines = [await envoy.wait_for_log_line(str(number)) for number in range(CALLS // 2, CALLS)]
        chosen = Counter(line["bridge"] for line in lines)
        return chosen[large.address] / chosen.total()


async def test_envoy_gives_the_emptier_bridge_more_calls(emulator, tmp_path, record_property):
    share = await share_of_the_large_one(emulator, tmp_path, load_reports='["trailers"]')
    record_property("mesh", f"{share:.0%} of the calls went to the bridge with ten times the room, by its reports")
    assert share > 0.7


async def test_envoy_without_reports_takes_turns(emulator, tmp_path):
    assert 0.45 < await share_of_the_large_one(emulator, tmp_path) < 0.55
