"""What holds after every call over real sockets: nothing unexpected is logged."""

import logging

import pytest

from bridge.server.grpc_aio import is_loggable


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING)
    yield
    records = [*caplog.get_records("setup"), *caplog.get_records("call")]
    assert [record.getMessage() for record in records if is_unexpected(record)] == []


def is_unexpected(record: logging.LogRecord) -> bool:
    if not record.name.startswith(("asyncio", "grpc", "aiohttp")) or not is_loggable(record):
        return False
    emulators = record.getMessage() == "socket.send() raised exception."  # it writes to a peer that has left
    of_a_test_before = "PollerCompletionQueue" in record.getMessage() and "loop is closed" in str(record.exc_info)
    return not (emulators or of_a_test_before)
