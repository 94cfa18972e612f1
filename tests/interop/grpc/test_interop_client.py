"""grpc-go's own interop client against a service on the bridge's boundary, without TLS and with it."""

import pytest

from tests.interop.grpc import judges
from tests.interop.grpc.interop_service import CASES, TestService
from tests.interop.grpc.transports import TRANSPORTS
from tests.kit import go_tools

pytestmark = pytest.mark.timeout(go_tools.BUILD_S + go_tools.RUN_S)


@pytest.mark.parametrize("is_secure", [False, True], ids=["insecure", "tls"])
@pytest.mark.parametrize("engine", TRANSPORTS)
@pytest.mark.parametrize("case", CASES)
async def test_case_passes(case, engine, is_secure, tmp_path):
    go_tools.build(go_tools.INTEROP_CLIENT)
    run = await judges.run_interop_case(case, engine, tmp_path if is_secure else None, TestService())
    assert run.exit_code == 0, run.output
    assert run.in_flight == 0
    assert CASES[case] is None or run.codes == CASES[case]


async def test_client_reports_a_wrong_answer():
    class WrongService(TestService):
        async def EmptyCall(self, request, call):
            raise call.rpc.make_failure(13, "wrong")

    go_tools.build(go_tools.INTEROP_CLIENT)
    run = await judges.run_interop_case("empty_unary", "grpcio", None, WrongService())
    assert run.exit_code != 0
    assert "wrong" in run.output
