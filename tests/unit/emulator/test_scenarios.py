"""Tests of bridge/emulator/scenarios.py: each scenario's steps against the table, and what can be asked for."""

import pytest

from bridge.emulator.scenarios import NUMBER_MAX, SCENARIOS, parse_scenario
from tests.unit.emulator.table import OTHERS, ROWS, create_call, run


@pytest.mark.parametrize("row", ROWS, ids=[row.scenario for row in ROWS])
def test_scenario_sends_what_the_table_says_in_a_stream(row):
    call = create_call(stream=True)
    parts = call.split_body()
    assert run(row.scenario, call) == row.stream(parts)


@pytest.mark.parametrize("row", ROWS, ids=[row.scenario for row in ROWS])
def test_scenario_sends_what_the_table_says_in_a_unary_answer(row):
    call = create_call(stream=False)
    parts = call.split_body()
    assert run(row.scenario, call) == row.unary(parts)


def test_every_scenario_has_a_row():
    assert {row.scenario.partition("?")[0] for row in ROWS} | OTHERS == SCENARIOS.keys()


def test_every_scenario_has_help_in_one_line():
    assert all(scenario.help and "\n" not in scenario.help for scenario in SCENARIOS.values())


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("plain", {}),
        ("plain?", {}),
        ("slow?delay_s=2", {"delay_s": 2.0, "chunk_delay_s": 0.0}),
        ("many?bytes=7&chunks=-1", {"chunks": -1, "bytes": 7}),
        ("reasoning?key=&text=a+b%26c", {"key": "", "text": "a b&c"}),
        (f"big?size={NUMBER_MAX}", {"size": NUMBER_MAX}),
    ],
)
def test_parameters_have_the_types_of_their_defaults(text, values):
    assert parse_scenario(text) == (text.partition("?")[0], values)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("nope", "one of big, bom, .*, found `nope`$"),
        ("slow?speed=1", "a parameter among delay_s, chunk_delay_s, found `speed`$"),
        ("plain?speed=1", "a parameter among , found `speed`$"),
        ("slow?delay_s=x", "delay_s: expected a number, found `x`$"),
        ("slow?delay_s=inf", "expected -1 to 268435456, found inf$"),
        ("slow?delay_s=nan", "expected -1 to 268435456, found nan$"),
        ("split?size=1.5", "size: expected a number, found `1.5`$"),
        ("split?size=-2", "expected -1 to 268435456, found -2$"),
        (f"big?size={NUMBER_MAX + 1}", "expected -1 to 268435456"),
    ],
)
def test_bad_scenario_is_refused(text, found):
    with pytest.raises(ValueError, match=found):
        parse_scenario(text)
