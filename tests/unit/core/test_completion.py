from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.completion import ChoicesError, Completion, has_content
from bridge.core.errors import BridgeError


def track(*chunks: Any) -> Completion:
    completion = Completion()
    for choices in chunks:
        completion.track(choices)
    return completion


def make_choice(finish_reason: Any = None, content: str | None = None, index: Any = 0) -> dict[str, Any]:
    delta = {} if content is None else {"content": content}
    return {"index": index, "delta": delta, "finish_reason": finish_reason}


STOP = make_choice("stop")


@pytest.mark.parametrize("reason", ["stop", "length", "new", "Noneless", {"x": 1}, 7, True, " stop "])
def test_choice_with_a_finish_reason_is_whole(reason):
    completion = track([make_choice(reason, "a")])
    assert completion.is_finished
    assert completion.is_whole


@pytest.mark.parametrize("reason", [None, "", "null", "none", "None", "NULL", " none ", 0, False, [], {}])
def test_choice_without_a_finish_reason_is_open(reason):
    completion = track([make_choice(reason, "a")])
    assert not completion.is_finished
    assert not completion.is_whole


@pytest.mark.parametrize(
    "reason",
    [
        *("error", "abort", "aborted", "cancelled", "canceled", "network_error", "insufficient_system_resource"),
        *("Error", "ABORT", "server_error", "failed", " error "),
    ],
)
def test_finish_reason_that_reports_a_failure_is_an_error(reason):
    with pytest.raises(BridgeError, match=reason.strip()) as caught:
        track([make_choice(reason, "a")])
    assert (caught.value.code.name, caught.value.reason_name) == ("ABORTED", "UPSTREAM_STREAM_ERROR")


@pytest.mark.parametrize("chunks", [[], [[]], [[STOP, make_choice(index=1)]], [[STOP], [make_choice(None, "a", 1)]]])
def test_completion_is_whole_only_if_every_choice_that_came_has_finished(chunks):
    completion = track(*chunks)
    assert (completion.is_finished, completion.is_whole) == (False, False)
    with pytest.raises(BridgeError, match="the completion is incomplete: it ended before"):
        raise completion.build_incomplete_error("it ended")


@pytest.mark.parametrize("indices", [(0, "0"), (0, 0.0), (0, None), ("0", "00"), (1.0, 1), ("x", "x"), (2.5, 2.5)])
def test_indices_of_the_same_number_are_one_choice(indices):
    first, last = indices
    assert track([make_choice(None, "a", first)], [make_choice("stop", None, last)]).is_whole


@pytest.mark.parametrize("index", [[1], {"a": 1}, True, "a", "٣", "1" * 5000, 1e300, -1, [[[]] * 3]])
def test_any_index_is_one(index):
    assert track([make_choice(None, "a", index)], [make_choice("stop", None, index)]).is_whole


@pytest.mark.parametrize(
    ("chunks", "is_whole"),
    [
        ([[STOP], [make_choice(None, "b")]], False),
        ([[make_choice("stop", "a")], [make_choice("stop", "b")]], False),
        ([[make_choice("stop", "a")], [make_choice("stop", "b")], [STOP]], False),
        ([[STOP], [make_choice(None, "")]], True),
        ([[STOP], [{"delta": {"role": "assistant", "content": None}}]], True),
        ([[STOP], [STOP]], True),
        ([[STOP], []], True),
    ],
)
def test_text_behind_the_finish_reason_opens_the_choice_for_a_break(chunks, is_whole):
    completion = track(*chunks)
    assert (completion.is_finished, completion.is_whole) == (True, is_whole)


USAGE = object()


@pytest.mark.parametrize(
    ("chunks", "may_go_on"),
    [
        ([[STOP]], True),
        ([[make_choice("stop", "a")], [STOP], []], True),
        ([[make_choice()], [STOP]], False),
        ([[make_choice(None, "a")], [make_choice("stop", "b")]], False),
        ([[make_choice(), make_choice("stop", "a", 1)], [STOP]], True),
        ([[make_choice("stop", "a")], USAGE], False),
        ([USAGE, [make_choice("stop", "a")]], True),
    ],
)
def test_finish_reason_in_a_choices_first_chunk_may_be_one_of_many_until_usage_comes(chunks, may_go_on):
    completion = Completion()
    for choices in chunks:
        if choices is USAGE:
            completion.track_usage()
        else:
            completion.track(choices)
    assert (completion.may_go_on, completion.is_whole) == (may_go_on, True)


def test_incomplete_error_says_that_text_came_behind_a_finish_reason():
    completion = track([STOP], [make_choice("stop", "b")])
    completion.track_usage()
    assert not completion.is_whole
    error = completion.build_incomplete_error("it ended")
    assert error.message.endswith("it ended before [DONE], and choice 0 had text behind its finish_reason")


@pytest.mark.parametrize("choices", [None, "none", {}, 5, True, [None], [STOP, 1], [[]], ["a"]])
def test_choices_that_are_no_list_of_objects_are_refused_and_change_nothing(choices):
    completion = track([STOP])
    with pytest.raises(ChoicesError, match=r"expected (a list|objects) as choices, found "):
        completion.track(choices)
    assert completion.is_whole


def test_choices_of_a_completion_are_bounded():
    completion = track([make_choice("stop", None, index) for index in range(1024)])
    with pytest.raises(BridgeError, match="more than 1024 choices"):
        completion.track([make_choice("stop", None, 1024)])


@pytest.mark.parametrize(
    ("choice", "has"),
    [
        ({"delta": {"content": "a"}}, True),
        ({"delta": {"role": "assistant", "tool_calls": [{}]}}, True),
        ({"message": {"reasoning": "a"}}, True),
        ({"delta": {"role": "assistant", "content": ""}}, False),
        ({"delta": None, "message": "a"}, False),
        ({"text": "a"}, False),
    ],
)
def test_content_is_what_a_model_produced(choice, has):
    assert has_content(choice) == has


REASONS = st.sampled_from([None, "", "stop", "none", 1]) | st.text(max_size=3)
INDICES = st.none() | st.integers(0, 2) | st.sampled_from(["0", "1", 0.0, 2.0, "x", [], {}])
CHOICES = st.lists(st.builds(make_choice, REASONS, st.none() | st.text(max_size=2), INDICES), max_size=3)


@given(st.lists(CHOICES, max_size=5))
def test_any_completion_that_is_whole_is_finished_and_both_need_a_choice(chunks):
    completion = track(*chunks)
    assert completion.is_finished or not completion.is_whole
    assert any(chunks) or not completion.is_finished
