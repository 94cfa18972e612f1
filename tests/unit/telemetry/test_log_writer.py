"""The writer never makes anybody wait, loses no line that can be written, and counts those that can't."""

import errno
import gc
import os
import select
import threading
import time
from collections.abc import Callable

import pytest

from bridge.telemetry.log_writer import LogWriter, open_text_stream

LONG_S = 30.0
LINE = b"x" * 99 + b"\n"


def wait_for(fact: Callable[[], object]) -> None:
    """Wait until a fact holds that nothing announces."""
    give_up_at = time.monotonic() + LONG_S
    while not fact():
        assert time.monotonic() < give_up_at
        time.sleep(0.002)


@pytest.fixture
def pipe():
    """Return `(reading end, writing end)`."""
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError as error:
            assert error.errno == errno.EBADF  # noqa: PT017 - the test has closed it


def fill(fd: int) -> int:
    """Fill a pipe, and return the number of bytes."""
    os.set_blocking(fd, False)
    written = 0
    try:
        while True:
            written += os.write(fd, b"." * 4096)
    except BlockingIOError:
        os.set_blocking(fd, True)
        return written


def read_all(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += os.read(fd, 65536)
    return data


def test_lines_are_written_whole_and_in_their_order(tmp_path):
    path = tmp_path / "log"
    with path.open("wb") as file:
        writer = LogWriter(file.fileno())
        lines = [f"line {number} {'y' * (number % 300)}\n".encode() for number in range(2000)]
        for line in lines:
            writer.put(line)
        assert writer.close(LONG_S)
    assert path.read_bytes() == b"".join(lines)
    assert writer.dropped == 0


def test_pipe_that_nobody_reads_blocks_nobody_and_costs_the_lines_beyond_the_bound(pipe):
    fill(pipe[1])
    writer = LogWriter(pipe[1], queue_bytes_max=100 * len(LINE))
    for _ in range(1000):
        writer.put(LINE)
    assert writer.dropped == 900
    assert not writer.close(0.01)
    assert not writer.failing
    assert os.read(pipe[0], 65536).strip(b".") == b""


def test_once_the_pipe_is_read_again_what_waited_is_written_and_the_dropped_are_reported(pipe):
    reports: list[int] = []
    filler = fill(pipe[1])
    writer = LogWriter(pipe[1], queue_bytes_max=10 * len(LINE), on_recovery=reports.append)
    for _ in range(30):
        writer.put(LINE)
    assert writer.dropped == 20
    assert read_all(pipe[0], filler + 10 * len(LINE)) == b"." * filler + LINE * 10
    wait_for(lambda: reports)
    writer.put(LINE)
    assert writer.close(LONG_S)
    assert read_all(pipe[0], len(LINE)) == LINE
    assert reports == [20]
    assert writer.dropped == 20


def test_pipe_whose_reader_is_gone_costs_lines_alone(pipe):
    os.close(pipe[0])
    writer = LogWriter(pipe[1])
    writer.put(LINE)
    wait_for(lambda: writer.dropped == 1)
    writer.put(LINE)
    assert writer.close(LONG_S)
    assert (writer.dropped, writer.failing) == (2, True)


def test_full_device_costs_lines_alone():
    with open("/dev/full", "wb", 0) as full:  # noqa: PTH123
        writer = LogWriter(full.fileno())
        writer.put(LINE)
        assert writer.close(LONG_S)
    assert (writer.dropped, writer.failing) == (1, True)


FULL_DISK = """
import contextlib, os, sys, time
from pathlib import Path
from bridge.telemetry.log_writer import LogWriter
reports = []
disk = Path(sys.argv[1])
fd = os.open(disk / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
others = disk / "others"
writer = LogWriter(fd, on_recovery=reports.append)
with others.open("wb", 0) as file, contextlib.suppress(OSError):
    while True:
        file.write(bytes(512))
line = b"x" * 2999 + b"\\n"

def write(count):
    for _ in range(count):
        writer.put(line)

os.truncate(others, others.stat().st_size - 8192)
write(5)
while writer.dropped < 3:
    time.sleep(0.005)
others.unlink()
write(2)
assert writer.close(30)
lines = (disk / "log").read_bytes().split(b"\\n")
assert [len(each) for each in lines if len(each) == 2999] == [2999] * 4, [len(each) for each in lines]
assert lines[-1] == b""
assert reports == [3], reports
"""


def test_line_that_a_full_disk_cut_off_does_not_spoil_the_next(tmp_path, run_on_small_disk):
    run_on_small_disk(FULL_DISK, tmp_path)


def test_descriptor_that_another_made_non_blocking_is_waited_for(pipe):
    filler = fill(pipe[1])
    os.set_blocking(pipe[1], False)
    writer = LogWriter(pipe[1])
    writer.put(LINE)
    assert read_all(pipe[0], filler + len(LINE))[filler:] == LINE
    assert writer.close(LONG_S)
    assert writer.dropped == 0


def test_lines_of_several_processes_on_one_pipe_stay_whole(pipe):
    """A pipe takes up to PIPE_BUF bytes as a whole; more may be cut where another writes."""
    rate = 200
    writers = [LogWriter(pipe[1]) for _ in range(3)]
    lines = [f"{number}{'z' * size}\n".encode() for number in range(3) for size in (10, 500, select.PIPE_BUF - 2)]

    def put(number: int) -> None:
        for _ in range(rate):
            for line in lines[3 * number : 3 * number + 3]:
                writers[number].put(line)

    threads = [threading.Thread(target=put, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    data = read_all(pipe[0], rate * sum(map(len, lines)))
    for thread in threads:
        thread.join()
    assert sorted(data.splitlines(keepends=True)) == sorted(lines * rate)
    assert [writer.close(LONG_S) for writer in writers] == [True] * 3


def test_line_larger_than_the_queue_is_dropped(tmp_path):
    with (tmp_path / "log").open("wb") as file:
        writer = LogWriter(file.fileno(), queue_bytes_max=100)
        writer.put(b"x" * 101)
        writer.put(b"x" * 99 + b"\n")
        assert writer.close(LONG_S)
    assert writer.dropped == 1
    assert (tmp_path / "log").stat().st_size == 100


def test_text_stream_queues_whole_lines_and_keeps_the_start_of_one(tmp_path):
    path = tmp_path / "log"
    with path.open("wb") as file:
        writer = LogWriter(file.fileno())
        stream = open_text_stream(writer, file.fileno())
        for text in ("one", " line\ntwo\nthr", "ee\n", "\ud800\n", "no end"):
            stream.write(text)
            stream.flush()
        assert stream.fileno() == file.fileno()
        assert not stream.isatty()
        assert writer.close(LONG_S)
    assert path.read_text() == "one line\ntwo\nthree\n\\ud800\n"


def test_line_may_be_put_by_a_destructor_while_another_is_put(tmp_path):
    class Noisy:
        def __init__(self, writer: LogWriter) -> None:
            self.writer = writer
            self.circle = self

        def __del__(self) -> None:
            self.writer.put(LINE)

    with (tmp_path / "log").open("wb") as file:
        writer = LogWriter(file.fileno())
        for _ in range(5000):
            Noisy(writer)
            writer.put(LINE)
        gc.collect()
        assert writer.close(LONG_S)
    assert (tmp_path / "log").stat().st_size == 10_000 * len(LINE)
