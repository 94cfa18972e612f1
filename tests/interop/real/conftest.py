"""The real servers as fixtures: started at their first use, kept for the session.

Without the packages of the `real` group every test of this folder is skipped; with REQUIRE_REAL_SERVERS=1 that is a
failure. The servers' output is in pytest's temporary directory, under `servers0`.
"""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.kit.real import servers

MISSING = servers.find_missing_packages()
MESSAGE = (
    f"tests/interop/real needs {', '.join(MISSING)}, not installed here: "
    "`make interop WHAT=real` installs the real servers"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The hook gets the items of all folders.
    here = [item for item in items if item.path.is_relative_to(Path(__file__).parent)]
    if not MISSING or not here:
        return
    if os.environ.get("REQUIRE_REAL_SERVERS") == "1":
        raise pytest.UsageError(MESSAGE)
    for item in here:
        item.add_marker(pytest.mark.skip(reason=MESSAGE))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    # Without -rs pytest would give a number and no reason.
    if MISSING:
        terminalreporter.write_line(f"SKIPPED: {MESSAGE}")


@pytest.fixture(scope="session")
def server_logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the servers' output."""
    return tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="session")
def llama_url(server_logs: Path) -> Iterator[str]:
    """llama-server with the model gemma3-270m; it speaks /v1/chat/completions itself."""
    with servers.llama_server(directory=server_logs) as url:
        yield url


@pytest.fixture(scope="session")
def llmock_server(server_logs: Path) -> Iterator[servers.Llmock]:
    """An upstream that fails on demand; `faulty` of the gateway leads to it too. Tests take `llmock`."""
    with servers.llmock(directory=server_logs) as server:
        yield server


@pytest.fixture
async def llmock(llmock_server: servers.Llmock) -> AsyncIterator[servers.Llmock]:
    """llmock without a past, and without one for the next test."""
    await llmock_server.reset()
    yield llmock_server
    await llmock_server.reset()


@pytest.fixture(scope="session")
def tensorzero_url(llama_url: str, llmock_server: servers.Llmock, server_logs: Path) -> Iterator[str]:
    """TensorZero itself, with its own paths and names."""
    with servers.tensorzero_gateway(llama_url, llmock_server.url, directory=server_logs) as url:
        yield url


@pytest.fixture(scope="session")
def gateway_key() -> str:
    """The one key that `gateway_url` knows."""
    return "sk-ollm-test-0123456789abcdef"


@pytest.fixture(scope="session")
def gateway_url(tensorzero_url: str, gateway_key: str, server_logs: Path) -> Iterator[str]:
    """TensorZero under ollm's names; it asks for `gateway_key`, as the dev gateway does."""
    with servers.shim(tensorzero_url, key=gateway_key, directory=server_logs / "keyed") as url:
        yield url


@pytest.fixture(scope="session")
def open_gateway_url(tensorzero_url: str, server_logs: Path) -> Iterator[str]:
    """The same without a key, as the prod gateway is."""
    with servers.shim(tensorzero_url, key=None, directory=server_logs / "open") as url:
        yield url


@pytest.fixture
async def slots(llama_url: str) -> servers.Gauge:
    """llama-server's running completions. A test begins with none: TensorZero first finishes those of other tests."""
    gauge = servers.slots(llama_url)
    await gauge.wait_until(0, timeout_s=30)
    return gauge


@pytest.fixture
def open_calls(gateway_url: str) -> servers.Gauge:
    """The calls that `gateway_url` has open."""
    return servers.open_calls(gateway_url)
