"""h2spec judges the call port's HTTP/2, with each engine that is held to it.

An engine is held if `h2spec/ENGINE.txt` is there: it has the cases that fail, a line each as `PACKAGE: CASE`, and above
it why. grpc.aio is not: its core fails 88 of the 146 by choice, as it answers misuse by resets and closes late.
"""

import pytest

from tests.interop.grpc import judges, known
from tests.interop.grpc.transports import TRANSPORTS
from tests.kit import go_tools

pytestmark = pytest.mark.timeout(go_tools.BUILD_S + go_tools.RUN_S)


@pytest.mark.parametrize("engine", known.list_held(TRANSPORTS))
async def test_http2_is_as_specified(engine, tmp_path):
    go_tools.build(go_tools.H2SPEC)
    judgement = await judges.judge_http2(engine, tmp_path / "report.xml")
    assert judgement.is_ok, judgement.output


REPORT = """<testsuites><testsuite name="3.1. DATA">
  <testcase package="generic/3.1" classname="Sends a DATA frame" time="2"><error>Timeout</error></testcase>
  <testcase package="generic/3.2" classname="Sends a HEADERS frame" time="0"></testcase>
</testsuite></testsuites>"""


def test_outcomes_are_read_from_the_report():
    assert judges.read_outcomes(REPORT) == [
        ("generic/3.1: Sends a DATA frame", False),
        ("generic/3.2: Sends a HEADERS frame", True),
    ]
