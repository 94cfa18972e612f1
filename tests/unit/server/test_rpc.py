"""Tests of bridge/server/rpc.py: the transport of the tests has what the boundary asks; mypy checks the real ones."""

import pytest

from bridge.server.rpc import Rpc, find_expiry
from tests.unit.server.fake_rpc import FakeRpc

ASKED = {name for name in vars(Rpc) if not name.startswith("_")}


def test_fake_transport_has_what_the_boundary_asks():
    assert ASKED
    assert {name for name in ASKED if not hasattr(FakeRpc(b""), name)} == set()


@pytest.mark.parametrize(("timeout_s", "slack_s"), [(0.001, 0.01), (0.2, 0.04), (1, 0.1), (3600, 0.1)])
def test_slack_of_a_deadline_is_a_part_of_the_time_within_bounds(timeout_s, slack_s):
    assert 1000 + timeout_s - find_expiry(timeout_s, 1000) == pytest.approx(slack_s)
