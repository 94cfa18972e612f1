"""Tests of bridge/cli/interrupts.py."""

import asyncio
import signal
import threading

import pytest

from bridge.cli.interrupts import run_interruptibly
from tests.kit.waiting import WAIT_S


def test_result_is_returned():
    assert run_interruptibly(asyncio.sleep(0, "done")) == "done"


def test_interrupt_that_another_thread_gets_cancels_at_once():
    """As one does that comes as the loop begins to wait: no system call of the main thread ends for it."""
    is_waiting, late = threading.Event(), []

    def interrupt():
        is_waiting.wait()
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    async def wait():
        asyncio.get_running_loop().call_later(0.1, is_waiting.set)
        asyncio.get_running_loop().call_later(WAIT_S, late.append, "the loop had something else to do")
        await asyncio.Event().wait()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_interruptibly(wait())
    thread.join()
    assert late == []


def test_command_in_another_thread_runs_too():
    found = []
    thread = threading.Thread(target=lambda: found.append(run_interruptibly(asyncio.sleep(0, "done"))))
    thread.start()
    thread.join()
    assert found == ["done"]
