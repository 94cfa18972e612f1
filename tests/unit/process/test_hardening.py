"""Tests of bridge/process/hardening.py, in a process of its own, since limits can't be raised again."""

import json
import sys

import pytest

from tests.kit.processes import run_program

PROGRAM = """
import json, resource, sys
from structlog.testing import capture_logs
from bridge.process.hardening import harden
from bridge.settings import Settings
resource.setrlimit(resource.RLIMIT_NOFILE, (256, int(sys.argv[1])))
with capture_logs() as lines:
    harden(Settings(calls_max=500, connections={"connections_max": 500}))
limits = [resource.getrlimit(each) for each in (resource.RLIMIT_CORE, resource.RLIMIT_NOFILE)]
print(json.dumps([limits, lines]))
"""


@pytest.mark.parametrize(("hard", "is_enough"), [(1024, False), (2048, True)])
def test_files_are_raised_to_the_hard_limit_and_core_dumps_are_off(hard, is_enough):
    ended = run_program(sys.executable, "-c", PROGRAM, str(hard))
    assert ended.code == 0, ended.err
    limits, lines = json.loads(ended.out)
    assert limits == [[0, 0], [hard, hard]]
    assert [(line["files_max"], line["needed"]) for line in lines] == ([] if is_enough else [(1024, 1064)])
