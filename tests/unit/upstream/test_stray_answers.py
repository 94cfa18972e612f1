"""The soak of lab/torture/answers.py in short and by a fixed seed, at the engine: no answer is another's."""

import contextlib

import httpx2
import pytest

from bridge.upstream.exchange import EngineError
from lab.torture.answers import CALM_QUESTIONS, ENGINES, Upstream, ask_all
from tests.kit.waiting import WAIT_S, eventually
from tests.unit.upstream.engines import open_engine, read_all

CALLERS = 16
QUESTIONS = {"native": 3000, "httpx": 600}


@pytest.mark.parametrize("seed", [1, 2])
async def test_no_answer_is_anothers_whatever_the_upstream_adds(engine_kind, seed):
    upstream = Upstream(seed)
    limits = {"connections_max": CALLERS - 4, "connect_timeout_s": WAIT_S}
    async with upstream.run(), open_engine(engine_kind, upstream.url, **limits) as engine:

        async def ask(question: int) -> bytes | None:
            stream = ', "stream":true' if question % 2 else ""
            try:
                answer = await engine.post((), f'{{"q":"question {question}."{stream}}}'.encode(), timeout_s=WAIT_S)
                with contextlib.closing(answer):
                    return await read_all(answer, WAIT_S)
            except EngineError as error:
                if not error.sent:
                    raise  # a connection can always be had
                return None

        most = QUESTIONS[engine_kind]
        wild = await ask_all(ask, callers=CALLERS, until=lambda questions: questions >= most)
        assert wild.wrong == []
        assert wild.right > most / 2
        assert wild.failed > most / 20
        upstream.is_calm = True
        calm = await ask_all(
            ask, callers=CALLERS, until=lambda questions: questions >= CALM_QUESTIONS, first=wild.questions + 1
        )
        assert (calm.right, calm.wrong) == (CALM_QUESTIONS, [])
        assert min(upstream.actions.values()) > most / 20
    await eventually(lambda: not engine.connections)


async def test_soak_finds_an_engine_that_gives_answers_to_others():
    """httpx2's own pool, see test_httpx_engine.py."""
    upstream = Upstream(1)
    async with upstream.run(), httpx2.AsyncClient(trust_env=False, timeout=WAIT_S) as client:

        async def ask(question: int) -> bytes | None:
            try:
                return (await client.post(upstream.url, content=f"question {question}.")).content
            except httpx2.HTTPError:
                return None

        tally = await ask_all(ask, callers=4, until=lambda questions: questions >= 400)
    assert tally.wrong


def test_both_engines_are_soaked():
    assert set(QUESTIONS) == set(ENGINES)
