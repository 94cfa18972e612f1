"""Connect's conformance suite judges the call port with each engine, and the web port.

`conformance/` has what is supported (`grpc.yaml`, `web.yaml`), and for each engine what is known to fail, with its
reason (`ENGINE.txt`; `ENGINE-flaky.txt` if by chance): a case that fails and is not in a list fails the test, and so
does one in it that passes.
"""

import pytest

from tests.interop.grpc import judges
from tests.interop.grpc.transports import TRANSPORTS, WEB
from tests.kit import go_tools

pytestmark = pytest.mark.timeout(go_tools.BUILD_S + go_tools.RUN_S)


@pytest.mark.parametrize("engine", [*TRANSPORTS, *WEB])
async def test_port_conforms(engine, tmp_path):
    go_tools.build(go_tools.CONNECT_CONFORMANCE)
    judgement = await judges.judge_conformance(engine, tmp_path)
    assert judgement.is_ok, judgement.output[-20_000:]


TOTALS = {
    "all pass": (0, "Total cases: 3\n3 passed, 0 failed\n", True),
    "one is known": (0, "Total cases: 3\n2 passed, 0 failed\n(Another 1 failed as expected due to x.)\n", True),
    "one fails": (1, "Total cases: 3\n2 passed, 1 failed\n", False),
    "one is known, one fails": (1, "Total cases: 3\n1 passed, 1 failed\n(Another 1 failed as expected)\n", False),
    "nothing ran": (1, "Total cases: 0\n0 passed, 0 failed\n", False),
    "it breaks off": (2, "panic\n", False),
    "it breaks off at the end": (2, "Total cases: 3\n3 passed, 0 failed\npanic\n", False),
}


@pytest.mark.parametrize(("exit_code", "output", "is_ok"), TOTALS.values(), ids=TOTALS)
def test_total_is_read(exit_code, output, is_ok):
    assert judges.read_total(exit_code, output).is_ok == is_ok
