"""Tests of bridge/__init__.py: what importing the bridge changes."""

import sys

import pytest

from tests.kit.processes import clean_environment, run_program

SHOW = "import bridge, os; print(os.environ['GRPC_VERBOSITY'])"


@pytest.mark.parametrize("given", ["", "DEBUG"])
def test_log_of_grpcs_core_has_errors_alone_unless_the_environment_says_more(given):
    environment = clean_environment() | ({"GRPC_VERBOSITY": given} if given else {})
    environment = {name: value for name, value in environment.items() if value}
    assert run_program(sys.executable, "-c", SHOW, environment=environment) == (0, f"{given or 'ERROR'}\n", "")
