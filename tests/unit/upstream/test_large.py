"""Tests of bridge/upstream/large.py: what runs in a thread."""

import threading

import pytest

from bridge.upstream.large import LARGE_BYTES, run_for_size


@pytest.mark.parametrize(("size", "is_here"), [(0, True), (LARGE_BYTES, True), (LARGE_BYTES + 1, False)])
async def test_only_large_text_is_decoded_in_a_thread(size, is_here):
    assert (await run_for_size(size, threading.current_thread) is threading.current_thread()) is is_here


@pytest.mark.parametrize("size", [1, LARGE_BYTES + 1])
async def test_failure_of_the_function_is_raised(size):
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await run_for_size(size, fail)
