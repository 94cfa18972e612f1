"""Every client of clients/ shows the same, case by case, and the gateway has seen what it should."""

import pytest

from tests.clients import programs
from tests.clients.upstream import SAW

# The first client builds with nothing in any cache.
pytestmark = pytest.mark.timeout(2 * programs.BUILD_S + programs.RUN_S)


@pytest.mark.parametrize("case", programs.expected(""))
def test_case(ran, case):
    client, lines, exchanges = ran
    assert lines.get(case) == programs.expected(client)[case]
    if case in SAW:
        SAW[case](exchanges)


def test_no_case_is_printed_that_is_not_expected(ran):
    client, lines, _ = ran
    assert lines.keys() == programs.expected(client).keys()


def test_every_folder_is_in_the_table():
    folders = {path.parent.name for path in programs.CLIENTS.glob("*/README.md")}
    assert folders == programs.NEEDS.keys()
