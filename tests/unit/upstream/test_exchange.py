"""Tests of bridge/upstream/exchange.py: the types that both engines implement, and what a failure says."""

import pytest

from bridge.upstream.exchange import ConnectError, Engine, EngineError, InvalidAnswerError
from tests.unit.upstream.engines import ENGINES

ASKED = {name for name in vars(Engine) if not name.startswith("_")}


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_engine_has_what_is_asked(engine):
    assert {name for name in ASKED if not hasattr(engine, name)} == set()


def test_only_a_failure_to_connect_is_sure_that_nothing_was_sent():
    assert {kind for kind in EngineError.__subclasses__() if not kind.sent} == {ConnectError}


def test_invalid_answer_knows_its_status_if_it_came():
    assert InvalidAnswerError("no HTTP").status is None
    assert InvalidAnswerError("head above 64 KiB", status=500).status == 500
