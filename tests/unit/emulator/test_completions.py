"""Tests of bridge/emulator/completions.py: the key, the tags, the names, the cache."""

import pytest

from bridge.emulator.completions import Cache, authenticate, collect_tags, select_model
from bridge.emulator.steps import RefusalError
from tests.unit.emulator.client import ollm, request

KEY = "sk-ollm-a-b"


@pytest.mark.parametrize(
    ("headers", "text"),
    [
        ({}, "is required"),
        ({"authorization": "Basic c2stb2xsbQ=="}, "must start with 'Bearer '"),
        ({"authorization": f"bearer {KEY}"}, "must start with 'Bearer '"),
        ({"authorization": "Bearer sk-ollm-other"}, "does not exist"),
        ({"authorization": "Bearer é"}, "does not exist"),
    ],
)
def test_bad_key_is_refused_and_not_repeated(headers, text):
    with pytest.raises(RefusalError, match=text) as caught:
        authenticate(headers, KEY)
    assert (caught.value.status, caught.value.envelope["type"]) == (401, "authentication_error")
    assert "sk-ollm" not in str(caught.value)


@pytest.mark.parametrize(
    ("headers", "api_key"), [({"authorization": f"Bearer {KEY}"}, KEY), ({"authorization": "nonsense"}, None)]
)
def test_right_key_is_accepted_and_without_one_to_compare_any(headers, api_key):
    authenticate(headers, api_key)


@pytest.mark.parametrize(
    ("headers", "body", "tags"),
    [
        ({}, ollm("tags", {"team": "a"}), {"team": "a"}),
        ({}, ollm("tags", {"source": "playground", "team": "a"}), {"playground": "true", "team": "a"}),
        ({}, ollm("tags", {"source": "elsewhere"}), {"source": "elsewhere"}),
        ({"user-agent": "demo/1"}, ollm("tags", {}), {"user_agent": "demo/1"}),
        ({"user-agent": "demo/1"}, request(), {"user_agent": "demo/1"}),
        ({"user-agent": "demo/1"}, ollm("tags", {"team": "a"}), {"team": "a"}),
        ({}, request(), {}),
    ],
)
def test_tags_are_those_of_the_spend_log(headers, body, tags):
    assert collect_tags(body, headers) == tags


@pytest.mark.parametrize(
    ("selector", "variant", "model", "scenario"),
    [
        ("echo", None, "ollm::model_name::echo", ""),
        ("ollm::model_name::echo", None, "ollm::model_name::echo", ""),
        ("ollm::function_name::hello", None, "ollm::function_name::hello::variant_name::v1", ""),
        ("ollm::function_name::hello", "v2", "ollm::function_name::hello::variant_name::v2", ""),
        ("scenario::cut?after=1", None, "ollm::model_name::scenario::cut?after=1", "cut?after=1"),
        ("ollm::model_name::scenario::plain", None, "ollm::model_name::scenario::plain", "plain"),
        ("ollm::function_name::scenario::a", "v2", "ollm::function_name::scenario::a::variant_name::v2", "a"),
    ],
)
def test_selector_is_named_in_full(selector, variant, model, scenario):
    body = request(model=selector, **{"ollm::variant_name": variant})
    assert select_model(body, ["echo"]) == (model, scenario)


@pytest.mark.parametrize(
    ("selector", "variant", "status", "param", "code"),
    [
        ("", None, 400, "model", None),
        ("ollm::function_name::", None, 400, "model", None),
        ("ollm::model_name::", None, 400, "model", None),
        ("echo", "v1", 400, "ollm::variant_name", None),
        ("nope", None, 404, "model", "model_not_found"),
        ("ollm::model_name::nope", None, 404, "model", "model_not_found"),
        ("ollm::function_name::nope", None, 404, "model", "function_not_found"),
        ("ollm::function_name::hello", "v9", 404, "ollm::variant_name", "variant_not_found"),
        ("ollm::function_name::scenario::plain", "v9", 404, "ollm::variant_name", "variant_not_found"),
    ],
)
def test_unknown_name_is_refused(selector, variant, status, param, code):
    with pytest.raises(RefusalError) as caught:
        select_model(request(model=selector, **{"ollm::variant_name": variant}), ["echo"])
    envelope = caught.value.envelope
    assert (caught.value.status, envelope["param"], envelope["code"]) == (status, param, code)


@pytest.mark.parametrize(
    ("first", "second", "hit"),
    [
        ({"enabled": "on"}, {"enabled": "read_only"}, True),
        ({"enabled": "write_only"}, {"enabled": "on"}, True),
        ({"enabled": "on"}, {"enabled": "write_only"}, False),
        ({"enabled": "read_only"}, {"enabled": "on"}, False),
        ({"enabled": "on"}, {"enabled": "off"}, False),
        ({"enabled": "off"}, {"enabled": "on"}, False),
        ({"enabled": "on"}, {}, False),
        ({"enabled": "on"}, None, False),
        ({"enabled": "on"}, {"enabled": "on", "max_age_s": 600}, True),
        ({"enabled": "on"}, {"enabled": "on", "max_age_s": None}, True),
        ({"enabled": "on"}, {"enabled": "on", "max_age_s": 0}, False),
    ],
)
def test_mode_decides_whether_the_cache_is_read_and_written(first, second, hit):
    cache = Cache()
    assert not cache.look_up(ollm("cache_options", first))
    assert cache.look_up(ollm("cache_options", second)) is hit


@pytest.mark.parametrize("mode", ["on", "write_only"])
def test_dry_run_does_not_write_the_cache(mode):
    cache = Cache()
    body = ollm("cache_options", {"enabled": mode})
    cache.look_up(body | {"ollm::dryrun": True})
    assert not cache.look_up(ollm("cache_options", {"enabled": "on"}))
    assert cache.look_up(ollm("cache_options", {"enabled": "on"}) | {"ollm::dryrun": True})


def test_cache_knows_a_request_by_what_the_model_sees():
    cache = Cache()
    body = ollm("cache_options", {"enabled": "on"})
    cache.look_up(body)
    assert cache.look_up(body | {"stream": True, "stream_options": None, "ollm::tags": {"a": "b"}})
    assert not cache.look_up(body | {"seed": 1})


def test_cache_forgets_the_request_that_was_not_used_for_longest():
    cache = Cache(entries_max=2)
    bodies = [ollm("cache_options", {"enabled": "on"}) | {"seed": seed} for seed in range(3)]
    hits = [cache.look_up(bodies[at]) for at in (0, 1, 0, 2, 0, 1)]
    assert hits == [False, False, True, False, True, False]
