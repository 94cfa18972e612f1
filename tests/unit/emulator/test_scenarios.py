"""Tests of bridge/emulator/scenarios.py: each scenario's steps against the table, and what can be asked for."""

import urllib.parse

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


DEFAULTS = """
plain mirror no_finish no_done done_only crlf cr bom multiline usage_chunk logprobs unknown_fields misfit surrogate
two_choices not_object no_choices
slow?delay_s=0.5&chunk_delay_s=0.0 stall?after=2&headers=1 split?size=1&delay_s=0.0
cut?after=2 reset?after=2 half_chunk?after=2 close?after=-1 garbage?after=2
error_event?after=2&message=the+provider+failed+in+mid-stream&status=0&type=&code=&named=0&flat=0&raw=0
flaky?times=1&status=503&retry_after_ms= comments?every=0.01&count=2
huge_event?size=1000000 big?size=10000000 many?chunks=10000&bytes=100 pace?chunks=50&interval_ms=10.0
reasoning?key=reasoning_content&text=Let+me+think+about+it.
not_json?status=200 wrong_type?in_200=0 redirect?status=307&location=%2Felsewhere
gzip?bomb=0 header_flood?count=200&size=100 refuse?connects=1
"""
ERRORS = {
    "error": (500, "full", "the provider failed", "", ""),
    "http_error": (500, "full", "the provider failed", "", ""),
    "rate_limited": (429, "full", "rate limit exceeded", "rate_limit_exceeded", "1"),
    "overloaded": (503, "full", "the gateway is overloaded", "", "1"),
    "provider_failed": (502, "bare", SCENARIOS["provider_failed"].params["message"], "", ""),
}


def test_parameters_and_their_defaults_are_those_that_were_promised():
    written = {"?".join(filter(None, (name, urllib.parse.urlencode(each.params)))) for name, each in SCENARIOS.items()}
    errors = {
        f"{name}?status={status}&envelope={envelope}&message={urllib.parse.quote_plus(message)}&type=&code={code}&param="
        f"&retry_after={retry_after}&retry_after_ms=&retry_date_s=-1&size=0&raw=0"
        for name, (status, envelope, message, code, retry_after) in ERRORS.items()
    }
    assert written == {*DEFAULTS.split(), *errors}


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
