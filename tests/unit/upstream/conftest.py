"""The two engines: a test that takes `engine_kind` runs on each."""

import pytest

from tests.unit.upstream.engines import ENGINES


@pytest.fixture(params=ENGINES)
def engine_kind(request: pytest.FixtureRequest) -> str:
    return request.param
