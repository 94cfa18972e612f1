import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.chat import encode_request
from bridge.core.errors import BridgeError
from bridge.core.validate import validate
from ollmbridge.v1.chat_completion_service_pb2 import CreateChatCompletionRequest

GOOD = {"model": "m", "messages": [{"role": "user", "text": "hi"}]}
DEEP = "[" * 65 + "]" * 65


def find_violations(stream: bool = False, **fields) -> list[str]:  # noqa: FBT001, FBT002 - a test's shorthand
    request = CreateChatCompletionRequest(**{**GOOD, **fields})
    try:
        encode_request(request, stream=stream)
    except BridgeError as error:
        return [violation.field for violation in error.violations]
    return []


def make_message(**fields) -> dict:
    return {"messages": [{"role": "user"}, {"role": "user", **fields}]}


def make_part(**fields) -> dict:
    return make_message(parts={"parts": [{"text": ""}, fields]})


def make_tool(**fields) -> dict:
    return {"tools": [{"raw_json": "{}"}, {"function": fields}]}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        pytest.param({"model": ""}, "model", id="model empty"),
        pytest.param({"messages": []}, "messages", id="no messages"),
        pytest.param(make_message(role=""), "messages[1].role", id="message without a role"),
        pytest.param({"n": 0}, "n", id="n 0"),
        pytest.param({"n": 2}, "n", id="n 2"),
        pytest.param({"n": -1}, "n", id="n below 0"),
        pytest.param({"max_tokens": -1}, "max_tokens", id="max_tokens below 0"),
        pytest.param({"max_completion_tokens": -1}, "max_completion_tokens", id="max_completion_tokens below 0"),
        pytest.param({"ollm": {"episode_id": "x"}}, "ollm.episode_id", id="episode_id no UUID"),
        pytest.param({"ollm": {"episode_id": ""}}, "ollm.episode_id", id="episode_id empty"),
        pytest.param(make_part(), "messages[1].parts.parts[1]", id="part with no member"),
        pytest.param(
            make_part(extra_json={"x": "1"}), "messages[1].parts.parts[1]", id="part with no member but other keys"
        ),
        pytest.param({"tools": [{}]}, "tools[0]", id="tool with no member"),
        pytest.param({"tool_choice": {}}, "tool_choice", id="tool choice with no member"),
        pytest.param({"tool_choice": {"mode": 0}}, "tool_choice.mode", id="tool choice of no mode"),
        pytest.param({"response_format": {}}, "response_format", id="response format with no member"),
        pytest.param(make_message(raw_json="{"), "messages[1].raw_json", id="content that is no JSON"),
        pytest.param(make_part(raw_json="{"), "messages[1].parts.parts[1].raw_json", id="part that is no JSON"),
        pytest.param({"tools": [{"raw_json": ""}]}, "tools[0].raw_json", id="tool that is no JSON"),
        pytest.param(
            make_tool(name="f", parameters_json="{}{}"),
            "tools[1].function.parameters_json",
            id="parameters that are no JSON",
        ),
        pytest.param({"tool_choice": {"raw_json": "NaN"}}, "tool_choice.raw_json", id="tool choice that is no JSON"),
        pytest.param(
            {"response_format": {"raw_json": "x"}}, "response_format.raw_json", id="response format that is no JSON"
        ),
        pytest.param(
            {"response_format": {"json_schema": {"name": "n", "schema_json": DEEP}}},
            "response_format.json_schema.schema_json",
            id="schema of 65 levels",
        ),
        pytest.param({"extra_json": {"x": "1,"}}, 'extra_json["x"]', id="extra_json that is no JSON"),
        pytest.param({"extra_json": {"x": DEEP}}, 'extra_json["x"]', id="extra_json of 65 levels"),
        pytest.param({"extra_json": {"stream": "true"}}, 'extra_json["stream"]', id="extra_json names stream"),
        pytest.param({"extra_json": {"": "1"}}, 'extra_json[""]', id="extra_json with an empty key"),
        pytest.param(
            {"extra_json": {"model": '"m"'}}, 'extra_json["model"]', id="extra_json names a field that is set"
        ),
        pytest.param(
            {"ollm": {"dryrun": False}, "extra_json": {"ollm::dryrun": "1"}},
            'extra_json["ollm::dryrun"]',
            id="extra_json names an option that is set",
        ),
        pytest.param(
            make_message(text="", extra_json={"content": "1"}),
            'messages[1].extra_json["content"]',
            id="a clash deeper down",
        ),
        pytest.param(make_tool(name=""), "tools[1].function.name", id="tool without a name"),
        pytest.param({"tools": [{"function": {}}]}, "tools[0].function.name", id="tool with nothing"),
        pytest.param({"tool_choice": {"function_name": ""}}, "tool_choice.function_name", id="choice without a name"),
        pytest.param(
            make_message(tool_calls=[{"id": "a", "function": {"arguments": "{}"}}]),
            "messages[1].tool_calls[0].function.name",
            id="function called without a name",
        ),
        *(
            pytest.param({name: value}, name, id=f"{name} {value}")
            for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty")
            for value in (float("nan"), float("inf"), float("-inf"))
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
def test_violation_has_its_proto_path(fields, field, stream):
    assert find_violations(stream, **fields) == [field]


def test_raw_usage_with_usage_switched_off_is_a_violation_in_a_stream():
    fields = {"ollm": {"include_raw_usage": True}, "stream_options": {"include_usage": False}}
    assert find_violations(stream=True, **fields) == ["stream_options.include_usage"]
    assert find_violations(stream=False, **fields) == []


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n": 1},
        {"max_tokens": 0, "max_completion_tokens": 0},
        {"temperature": 99.0, "top_p": -1.0, "seed": -1},
        {"service_tier": "x", "reasoning_effort": "", "verbosity": "x"},
        {"stop": [""]},
        {"ollm": {"cache_options": {"enabled": "x", "max_age_s": -1}, "tags": {"": ""}}},
        {"ollm": {"variant_name": "v"}},
        {"ollm": {"include_raw_usage": True}},
        {"ollm": {"include_raw_usage": True}, "stream_options": {}},
        {"ollm": {"include_raw_usage": True}, "stream_options": {"include_usage": True}},
        {"ollm": {"include_raw_usage": False}, "stream_options": {"include_usage": False}},
        {"messages": [{"role": "x"}]},
        {"messages": [{"role": "user", "parts": {}}]},
        make_message(tool_calls=[{"id": "", "type": "custom", "extra_json": {"custom": "{}"}}]),
        make_message(tool_call_id="", name=""),
        make_part(image_url={}),
        make_part(file={}),
        {"tools": [{"function": {"name": "f"}}, {"function": {"name": "f"}}]},
        {"response_format": {"json_schema": {}}},
        {"extra_json": {"temperature": "null", "x": "[" * 64 + "]" * 64}},
    ],
    ids=repr,
)
@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
def test_value_that_the_upstream_judges_is_no_violation(fields, stream):
    assert find_violations(stream, **fields) == []


@pytest.mark.parametrize(
    "episode_id",
    [
        "01a2063e-33b0-7f6c-b64f-ec7592a3a7e8",
        "01A2063E-33B0-7F6C-B64F-EC7592A3A7E8",
        "01a2063e33b07f6cb64fec7592a3a7e8",
        "urn:uuid:01a2063e-33b0-7f6c-b64f-ec7592a3a7e8",
        "{01a2063e-33b0-7f6c-b64f-ec7592a3a7e8}",
        "00000000-0000-0000-0000-000000000000",
    ],
)
def test_uuid_in_any_of_its_forms_is_no_violation(episode_id):
    assert find_violations(ollm={"episode_id": episode_id}) == []


@pytest.mark.parametrize(
    "episode_id",
    [
        "not-a-uuid",
        "01a2063e-33b0-7f6c-b64f-ec7592a3a7e",
        "01a2063e-33b0-7f6c-b64f-ec7592a3a7e81",
        "01a2063g-33b0-7f6c-b64f-ec7592a3a7e8",
        " 01a2063e-33b0-7f6c-b64f-ec7592a3a7e8",
        "01a2063e-33b0-7f6c-b64f-ec7592a3a7e8\n",
        "\n1a2063e33b07f6cb64fec7592a3a7e8",
        "0_1a2063e33b07f6cb64fec7592a3a7e",
        "\u06601a2063e33b07f6cb64fec7592a3a7e8",
        "0-1a2063e33b07f6cb64fec7592a3a7e8",
        "{01a2063e-33b0-7f6c-b64f-ec7592a3a7e8",
    ],
    ids=repr,
)
def test_text_that_is_nearly_a_uuid_is_a_violation(episode_id):
    assert find_violations(ollm={"episode_id": episode_id}) == ["ollm.episode_id"]


@given(st.uuids())
def test_any_uuid_is_no_violation(episode_id):
    assert validate(CreateChatCompletionRequest(**GOOD, ollm={"episode_id": str(episode_id)}), stream=False) == []


def test_every_violation_is_named_at_once():
    found = find_violations(
        stream=True,
        model="",
        messages=[{}, {"role": "user", "parts": {"parts": [{}, {"raw_json": "}"}]}}],
        n=2,
        max_tokens=-1,
        max_completion_tokens=-2,
        temperature=float("nan"),
        stream_options={"include_usage": False},
        tools=[{}, {"function": {}}, {"function": {"name": "f", "parameters_json": "}"}}],
        tool_choice={},
        response_format={},
        ollm={"episode_id": "x", "include_raw_usage": True},
        extra_json={"stream": "1", "a": "}", "n": "1"},
    )
    assert sorted(found) == sorted(
        [
            *("model", "messages[0].role", "n", "max_tokens", "max_completion_tokens", "temperature"),
            *("messages[1].parts.parts[0]", "messages[1].parts.parts[1].raw_json", "stream_options.include_usage"),
            *("tools[0]", "tools[1].function.name", "tools[2].function.parameters_json", "tool_choice"),
            *("response_format", "ollm.episode_id", 'extra_json["stream"]', 'extra_json["a"]', 'extra_json["n"]'),
        ]
    )


def test_violation_says_what_was_expected_and_what_was_found():
    with pytest.raises(BridgeError) as caught:
        encode_request(CreateChatCompletionRequest(**GOOD, n=3, extra_json={"x": "}"}), stream=False)
    descriptions = {violation.field: violation.description for violation in caught.value.violations}
    assert (caught.value.code.name, caught.value.reason_name) == ("INVALID_ARGUMENT", "INVALID_REQUEST")
    assert descriptions["n"] == "expected 1 or no value, found 3"
    assert descriptions['extra_json["x"]'].startswith("expected one JSON document, found '}'")
    assert caught.value.message == "n: expected 1 or no value, found 3 (and 1 more)"


def test_all_fields_of_a_kind_are_named_by_their_index():
    assert find_violations(messages=[{"role": "u"}, {}, {"role": "u"}, {}]) == ["messages[1].role", "messages[3].role"]
