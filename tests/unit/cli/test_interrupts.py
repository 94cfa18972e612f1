"""Tests of bridge/cli/interrupts.py."""

import asyncio
import signal
import threading
import time

import pytest

from bridge.cli.interrupts import run_interruptibly
from tests.kit.waiting import WAIT_S


def test_result_is_returned():
    assert run_interruptibly(asyncio.sleep(0, "done")) == "done"


def test_interrupt_that_another_thread_gets_cancels_at_once():
    """As one does that comes as the loop begins to wait: no system call of the main thread ends for it."""
    is_waiting, waited_s = threading.Event(), 0.0

    def interrupt():
        is_waiting.wait()
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    async def wait():
        nonlocal waited_s
        asyncio.get_running_loop().call_later(0.1, is_waiting.set)
        started_at = time.monotonic()
        try:
            await asyncio.sleep(WAIT_S)
        finally:
            waited_s = time.monotonic() - started_at

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_interruptibly(wait())
    thread.join()
    assert waited_s < WAIT_S


def test_command_in_another_thread_runs_too():
    found = []
    thread = threading.Thread(target=lambda: found.append(run_interruptibly(asyncio.sleep(0, "done"))))
    thread.start()
    thread.join()
    assert found == ["done"]
