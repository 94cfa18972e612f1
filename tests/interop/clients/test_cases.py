"""Every client of clients/ prints the same, case by case, and the gateway got the right requests."""

import pytest

from tests.interop.clients import programs
from tests.interop.clients.upstream import CHECKS

# The first client builds with nothing in any cache.
pytestmark = pytest.mark.timeout(2 * programs.BUILD_S + programs.RUN_S)


@pytest.mark.parametrize("case", programs.read_expected(""))
def test_case(client_run, case):
    client, lines, exchanges = client_run
    if case not in programs.read_expected(client):
        pytest.skip(f"{client} has no kit")
    assert lines.get(case) == programs.read_expected(client)[case]
    if case in CHECKS:
        CHECKS[case](exchanges)


def test_client_prints_no_other_case(client_run):
    client, lines, _ = client_run
    assert lines.keys() == programs.read_expected(client).keys()


def test_every_folder_is_in_the_table():
    folders = {path.parent.name for path in programs.CLIENTS.glob("*/README.md")}
    assert folders == programs.NEEDS.keys()
