"""Tests of bridge/upstream/large.py: what runs in a thread."""

import asyncio
import gc
import threading

import pytest

from bridge.upstream.large import LARGE_BYTES, LARGE_VALUES, measure_text, run_for_size


@pytest.mark.parametrize(("size", "is_here"), [(0, True), (LARGE_BYTES, True), (LARGE_BYTES + 1, False)])
async def test_only_large_text_is_decoded_in_a_thread(size, is_here):
    assert (await run_for_size(size, threading.current_thread) is threading.current_thread()) is is_here


def nest(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


@pytest.mark.parametrize(
    ("text", "is_large"),
    [
        (b"", False),
        (b'{"a":"%b"}' % (b"x" * 200_000), False),
        (b"x" * (LARGE_BYTES + 1), True),
        (b"[" + b",".join([b"{}"] * (LARGE_VALUES // 2 - 1)) + b"]", False),
        (b"[" + b",".join([b"{}"] * LARGE_VALUES) + b"]", True),
        (b"[" + b",".join([b"0"] * LARGE_VALUES) + b"]", False),
        (b"[" + b",".join([b"0"] * (LARGE_VALUES + 1)) + b"]", True),
        (nest(LARGE_VALUES), False),
        (nest(LARGE_VALUES + 1), True),
    ],
    ids=["empty", "long text", "many bytes", "few", "objects", "numbers at the limit", "numbers", "at it", "arrays"],
)
def test_text_of_many_values_is_large_as_one_of_many_bytes_is(text, is_large):
    assert (measure_text(text) > LARGE_BYTES) == is_large


@pytest.mark.parametrize("size", [1, LARGE_BYTES + 1])
async def test_failure_of_the_function_is_raised(size):
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await run_for_size(size, fail)


@pytest.mark.parametrize("fails", [False, True])
async def test_cancellation_waits_for_the_end_of_the_thread_however_often_it_comes(fails, caplog):
    begun, released = threading.Event(), threading.Event()

    def decode() -> None:
        begun.set()
        released.wait()
        if fails:
            raise ValueError("no")

    task = asyncio.create_task(run_for_size(LARGE_BYTES + 1, decode))
    await asyncio.to_thread(begun.wait)
    try:
        for _ in range(3):
            task.cancel()
            for _ in range(10):
                await asyncio.sleep(0)
            assert not task.done()
    finally:
        released.set()
    await asyncio.wait({task})
    assert task.cancelled()
    gc.collect()
    assert caplog.text == ""
