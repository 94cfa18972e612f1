"""Tests of bridge/server/native/timing.py: what is due is done, once, and nothing after the stop."""

import asyncio

from bridge.server.native.lifetime import Action
from bridge.server.native.timing import Timing
from bridge.settings import ConnectionSettings
from tests.kit.waiting import eventually

NEVER = {"age_s": None, "idle_s": 0, "ping_s": 0}


def make(done: list[Action], **settings: float) -> Timing:
    return Timing(asyncio.get_running_loop(), ConnectionSettings(**NEVER | settings), done.append)


async def test_what_is_due_is_done_in_its_order():
    done: list[Action] = []
    timing = make(done, ping_s=0.02, ping_timeout_s=0.02)
    timing.start()
    await eventually(lambda: Action.CLOSE in done)
    timing.stop()
    assert [action for action in done if action is not Action.NOTHING][:2] == [Action.PING, Action.CLOSE]


async def test_timer_is_set_anew_if_something_is_due_earlier():
    done: list[Action] = []
    timing = make(done, idle_s=0.03, ping_s=60)
    timing.lifetime.idle_since = None
    timing.start()
    timing.lifetime.idle_since = asyncio.get_running_loop().time()
    timing.start()
    await eventually(lambda: Action.GO_AWAY in done)
    timing.stop()


async def test_nothing_is_done_after_the_stop():
    done: list[Action] = []
    timing = make(done, ping_s=0.01)
    timing.start()
    timing.stop()
    timing.start()
    await asyncio.sleep(0.05)
    assert done == []
