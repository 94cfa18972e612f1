"""Tests of bridge/process/worker.py: what a worker tells its supervisor, and that it drains when that is gone."""

import gc
import multiprocessing
import signal
import threading

import pytest

from bridge.process.worker import run_worker
from bridge.settings import Settings
from tests.kit.collector import freeze_heap


@pytest.fixture(autouse=True)
def _restore_process():
    handler, thresholds = signal.getsignal(signal.SIGINT), gc.get_threshold()
    yield
    signal.signal(signal.SIGINT, handler)
    gc.set_threshold(*thresholds)
    freeze_heap()  # of this test's


@pytest.fixture
def pipe():
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        yield ours, theirs


def make_settings(**settings):
    return Settings(listen="127.0.0.1:0", upstream={"base_url": "http://127.0.0.1:9"}, **settings)


def test_worker_is_ready_with_its_address_and_ends_with_its_supervisor(tmp_path, pipe, capfd):
    ours, theirs = pipe
    messages = {}

    def supervise():
        while "ready" not in messages:
            messages.update([ours.recv()])
        ours.close()

    supervisor = threading.Thread(target=supervise)
    supervisor.start()
    run_worker(make_settings(), tmp_path, theirs)
    supervisor.join()
    assert messages["ready"].startswith("127.0.0.1:")
    capfd.readouterr()


def test_worker_refuses_settings_that_it_cannot_use(tmp_path, pipe, capfd):
    ours, theirs = pipe
    with pytest.raises(SystemExit) as ended:
        run_worker(make_settings(tokens_file="/no/tokens"), tmp_path, theirs)
    kind, why = ours.recv()
    assert (ended.value.code, kind) == (2, "refused")
    assert why.startswith("tokens_file: ")
    capfd.readouterr()
