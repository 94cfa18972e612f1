"""Fixtures of all tests over real sockets: a test fails if anything unexpected is logged, and both engines are tested.

The tests that concern the upstream run with each HTTP engine, the others with the default one.
"""

import logging
from pathlib import Path

import pytest

from bridge.server.grpc_aio import is_loggable

ON_BOTH_ENGINES = frozenset(
    {"test_cancel", "test_deadline", "test_errors", "test_stream", "test_unary", "test_upstream_faults"}
)

ON_NATIVE_ALONE = {
    "test_errors": {
        "test_bad_metadata_is_an_invalid_argument",
        "test_envelope_with_a_status_becomes_the_tables_code_and_reason",
        "test_not_found_names_the_requested_resource",
        "test_status_without_an_envelope_becomes_the_tables_code_and_reason",
        "test_wait_becomes_retry_info_and_pushback",
    },
    "test_stream": {"test_ten_thousand_chunks_are_returned_whole_and_in_order"},
}
"""Large tables of complete HTTP answers, and many chunks: to an engine, each is the same."""

for module in ON_BOTH_ENGINES | ON_NATIVE_ALONE.keys():
    assert Path(__file__).with_name(f"{module}.py").exists(), f"{module} is listed, and there is no such file"


def pytest_generate_tests(metafunc: pytest.Metafunc):
    module = metafunc.module.__name__.rpartition(".")[2]
    on_native = ON_NATIVE_ALONE.get(module, set())
    missing = on_native - vars(metafunc.module).keys()
    assert not missing, f"listed as tests of {module}, and not there: {missing}"
    if "upstream_engine" in metafunc.fixturenames and module in ON_BOTH_ENGINES:
        kinds = ["native"] if metafunc.function.__name__ in on_native else ["native", "httpx"]
        metafunc.parametrize("upstream_engine", kinds, indirect=True)


@pytest.fixture
def upstream_engine(request: pytest.FixtureRequest) -> str:
    return getattr(request, "param", "native")


@pytest.fixture(autouse=True)
def _check_logs(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING)
    yield
    records = [*caplog.get_records("setup"), *caplog.get_records("call")]
    assert [record.getMessage() for record in records if is_unexpected(record)] == []


def is_unexpected(record: logging.LogRecord) -> bool:
    if not record.name.startswith(("asyncio", "grpc", "aiohttp")) or not is_loggable(record):
        return False
    from_emulator = (
        record.getMessage() == "socket.send() raised exception."
    )  # it writes to a peer that has disconnected
    from_previous_test = "PollerCompletionQueue" in record.getMessage() and "loop is closed" in str(record.exc_info)
    return not (from_emulator or from_previous_test)
