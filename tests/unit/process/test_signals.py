"""Tests of bridge/process/signals.py: SIGHUP looks at the files. tests/e2e/test_lifecycle.py has a second signal."""

import asyncio
import os
import signal
import threading

from structlog.testing import capture_logs

from bridge.process.signals import handle_reload, handle_stop


async def test_hangup_reloads_in_a_thread_and_says_so():
    threads: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    handle_reload(lambda: loop.call_soon_threadsafe(threads.put_nowait, threading.current_thread().name))
    with capture_logs() as lines:
        os.kill(os.getpid(), signal.SIGHUP)
        assert await threads.get() != threading.current_thread().name
    loop.remove_signal_handler(signal.SIGHUP)
    assert lines == [{"event": "looking at the files now: SIGHUP", "log_level": "info"}]


async def test_first_signal_sets_the_event():
    stopping = asyncio.Event()
    handle_stop((signal.SIGUSR1,), stopping)
    os.kill(os.getpid(), signal.SIGUSR1)
    await stopping.wait()
    asyncio.get_running_loop().remove_signal_handler(signal.SIGUSR1)
