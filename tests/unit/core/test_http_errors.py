import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.errors import Asked, BridgeError, Code, Resource
from bridge.core.http_errors import error_from_response, error_from_value, parse_retry_after
from bridge.core.source import Source
from bridge.core.status import to_grpc_status
from ollmbridge.v1.error_details_pb2 import UpstreamError
from tests.kit import documents, vectors
from tests.kit.documents import spell
from tests.kit.status_table import HTTP_STATUSES, find_verdict
from tests.kit.statuses import STATUS_BYTES_MAX, count_sent_bytes, read_details

NOW_S = 1795400000.0
ENVELOPE = b'{"error": {"message": "m"}}'


def get_row(error: BridgeError) -> tuple[str, str]:
    return error.code.name, error.reason_name


def read_inside_200(error: Any, **beside: Any) -> BridgeError:
    return error_from_response(200, json.dumps({"error": error, **beside}).encode())


# The table from HTTP to status, as the contract has it

INVALID_RESPONSE = ("INTERNAL", "INVALID_UPSTREAM_RESPONSE")


@pytest.mark.parametrize("has_envelope", [True, False], ids=["envelope", "no envelope"])
@pytest.mark.parametrize("status", HTTP_STATUSES)
def test_http_status_has_its_row(status, has_envelope):
    error = error_from_response(
        status, ENVELOPE if has_envelope else b"<html>no</html>", content_type="text/html; charset=x"
    )
    assert get_row(error) == find_verdict(status, has_envelope=has_envelope)
    assert error.upstream.http_status == status
    if has_envelope:
        assert error.message == "m"
        assert not error.upstream.HasField("body_excerpt")
    else:
        assert f"envelope: HTTP {status}" in error.message
        assert error.message.endswith("with 15 bytes of text/html")
        assert error.upstream.body_excerpt == "<html>no</html>"
    info = read_details(to_grpc_status(error))["ErrorInfo"]
    assert (info.reason, info.metadata["httpStatus"]) == (error.reason_name, str(status))


@pytest.mark.parametrize("status", [*range(300, 400), 404, 405, 500, 200, 204, 502])
def test_empty_body_is_no_envelope(status):
    error = error_from_response(status, b"")
    assert get_row(error) == (INVALID_RESPONSE if status < 300 else find_verdict(status, has_envelope=False))
    assert "an empty body" in error.message


def test_unavailable_is_kept_for_statuses_that_say_that_nothing_was_generated():
    for status in range(300, 600):
        for body in (ENVELOPE, b""):
            error = error_from_response(status, body)
            assert (error.code is Code.UNAVAILABLE) == (status in {502, 503, *range(520, 524), 525, 526, 527, 529, 530})
            assert error.code is not Code.CANCELLED


@pytest.mark.parametrize("status", [401, 403, 451])
def test_refusal_of_the_own_key_does_not_blame_the_caller(status):
    error = error_from_response(status, ENVELOPE, asked=Asked(own_key=True))
    assert get_row(error) == ("INTERNAL", "CREDENTIALS_REJECTED")
    assert error.message == f"the upstream refused the bridge's own key (HTTP {status}): m"
    assert read_details(to_grpc_status(error))["ErrorInfo"].domain == "ollmbridge"
    assert get_row(error_from_response(status, b"", asked=Asked(own_key=True))) == ("INTERNAL", "CREDENTIALS_REJECTED")


def test_own_key_changes_no_other_row():
    for status in {*range(300, 600)} - {401, 403, 451}:
        assert get_row(error_from_response(status, ENVELOPE, asked=Asked(own_key=True))) == find_verdict(
            status, has_envelope=True
        )


@pytest.mark.parametrize("code", [401, "invalid_api_key", 403, "permission_error"])
def test_refusal_of_the_own_key_inside_a_200_does_not_blame_the_caller(code):
    error = error_from_response(
        200, json.dumps({"error": {"message": "m", "code": code}}).encode(), asked=Asked(own_key=True)
    )
    assert get_row(error) == ("INTERNAL", "CREDENTIALS_REJECTED")


# Envelopes


@pytest.mark.parametrize(
    ("body", "upstream"),
    [
        (
            '{"error": {"message": "m", "type": "t", "code": "c", "param": "p"}}',
            {"message": "m", "type": "t", "code": "c", "param": "p"},
        ),
        ('{"error": {"message": "m", "type": null, "code": null, "param": null}}', {"message": "m"}),
        ('{"error": {"message": "m", "code": 400}}', {"message": "m", "code": "400"}),
        ('{"error": {"message": ["m", "n"], "code": 1.50}}', {"message": "m; n", "extra_json": {"code": "1.50"}}),
        ('{"error": {"message": {"a": 1.0}}}', {"message": '{"a": 1.0}'}),
        ('{"error": {"message": "", "code": ""}}', {"message": "", "code": ""}),
        ('{"error": {}}', {}),
        (
            '{"error": {"message": "m", "n_ctx": 2048.0}, "raw": [{"b": 1.10, "a": 1}]}',
            {"message": "m", "extra_json": {"n_ctx": "2048.0", "raw": '[{"b": 1.10, "a": 1}]'}},
        ),
        (
            '{"error": {"message": "m", "type": "t"}, "type": "error"}',
            {"message": "m", "type": "t", "extra_json": {"$.type": '"error"'}},
        ),
        ('{"error": "m"}', {"message": "m"}),
        ('{"error": "m", "error_json": {"a": 1}}', {"message": "m", "extra_json": {"error_json": '{"a": 1}'}}),
        ('{"error": ["m"]}', {"message": '["m"]'}),
        ('{"detail": "no such model"}', {"message": "no such model"}),
        ('{"detail": [{"loc": ["body"], "n": 1.0}]}', {"message": '[{"loc": ["body"], "n": 1.0}]'}),
        ('{"message": "m", "type": "t", "code": 7}', {"message": "m", "type": "t", "code": "7"}),
        ('{"message": "m", "error": "e"}', {"message": "m", "extra_json": {"error": '"e"'}}),
    ],
)
def test_envelope_is_read_in_each_of_its_shapes(body, upstream):
    error = error_from_response(404, body.encode())
    assert error.code is Code.NOT_FOUND
    assert error.upstream == UpstreamError(http_status=404, **upstream)
    assert error.message == (upstream.get("message") or "the upstream answered HTTP 404 Not Found")
    assert read_details(to_grpc_status(error))["UpstreamError"] == error.upstream


@pytest.mark.parametrize(
    "body",
    ["", "null", "[]", '"text"', "5", "{}", '{"error": null}', '{"error": ""}', '{"detail": null}', '{"ok": 1}', "<p>"],
)
def test_body_without_an_envelope_is_an_excerpt(body):
    error = error_from_response(404, body.encode())
    assert get_row(error) == INVALID_RESPONSE
    assert error.upstream == UpstreamError(http_status=404, body_excerpt=body)


@pytest.mark.parametrize("name", vectors.list_names("errors"))
def test_recorded_error_has_its_status(name):
    answer, expected = vectors.read_answer("errors", name), vectors.read_expected("errors")[name]
    error = error_from_response(
        answer.status,
        answer.body,
        content_type=answer.content_type,
        retry_after_ms=parse_retry_after(answer.headers, now_s=NOW_S),
    )
    status = to_grpc_status(error, request_id="r")
    assert get_row(error) == (expected["code"], expected["reason"])
    assert status.message == expected["message"]
    found = read_details(status)
    upstream = found["UpstreamError"]
    assert (upstream.http_status, upstream.message) == (answer.status, expected["message"])
    assert (upstream.type, upstream.code) == (expected.get("upstream_type", ""), expected.get("upstream_code", ""))
    assert {key: json.loads(text) for key, text in upstream.extra_json.items()} == expected.get("extra", {})
    wait_ms = found["RetryInfo"].retry_delay.ToMilliseconds() if "RetryInfo" in found else None
    assert wait_ms == expected.get("retry_after_ms")
    assert not upstream.truncated
    assert count_sent_bytes(*status) < STATUS_BYTES_MAX


@pytest.mark.parametrize("depth", [500, 990, 1_000, 1_020, 1_100, 100_000])
@pytest.mark.parametrize("status", [200, 400, 404, 503])
@pytest.mark.parametrize(
    "template", ['{"error": {"message": "m", "x": %s}}', '{"error": {"message": "m"}, "x": %s}', '{"error": %s}']
)
def test_envelope_of_any_depth_is_a_status(template, status, depth):
    error = error_from_response(status, (template % ("[" * depth + "]" * depth)).encode())
    assert isinstance(error, BridgeError)
    assert error.upstream.http_status == status
    assert count_sent_bytes(*to_grpc_status(error)) < STATUS_BYTES_MAX


@given(
    st.integers(100, 599),
    st.one_of(
        st.fixed_dictionaries(
            {},
            optional={
                "error": documents.ANYTHING
                | st.dictionaries(
                    st.sampled_from(["message", "type", "code", "param", "x", ""]), documents.ANYTHING, max_size=4
                ),
                "message": documents.ANYTHING,
                "detail": documents.ANYTHING,
                "x": documents.ANYTHING,
            },
        ),
        documents.ANYTHING,
    ).map(spell)
    | st.text(max_size=20),
)
def test_any_body_is_a_status_within_its_size(status, body):
    error = error_from_response(status, body.encode())
    status = to_grpc_status(error)
    assert read_details(status)["ErrorInfo"].reason == error.reason_name
    assert count_sent_bytes(*status) < STATUS_BYTES_MAX


# Errors inside a 200

WORDS = {
    "rate_limit_exceeded": "RESOURCE_EXHAUSTED",
    "insufficient_quota": "RESOURCE_EXHAUSTED",
    "invalid_request_error": "INVALID_ARGUMENT",
    "authentication_error": "UNAUTHENTICATED",
    "permission_error": "PERMISSION_DENIED",
    "not_found_error": "NOT_FOUND",
    "model_not_found": "NOT_FOUND",
    "context_length_exceeded": "INVALID_ARGUMENT",
    "overloaded_error": "UNAVAILABLE",
    "server_error": "INTERNAL",
    "timeout": "DEADLINE_EXCEEDED",
}


@pytest.mark.parametrize("key", ["code", "type"])
@pytest.mark.parametrize(("word", "code"), WORDS.items(), ids=WORDS)
def test_known_word_inside_a_200_picks_the_row(word, code, key):
    assert get_row(read_inside_200({"message": "m", key: word})) == (code, "UPSTREAM_STREAM_ERROR")


@pytest.mark.parametrize("status", range(400, 600))
def test_number_inside_a_200_picks_the_row(status):
    code = find_verdict(status, has_envelope=True)[0]
    for error in ({"code": status}, {"code": str(status)}, {"status": status}, {"status": str(status)}):
        assert get_row(read_inside_200({"message": "m", **error})) == (code, "UPSTREAM_STREAM_ERROR")
    assert get_row(read_inside_200("m", code=status)) == (code, "UPSTREAM_STREAM_ERROR")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ({"code": 429, "type": "server_error"}, "RESOURCE_EXHAUSTED"),
        ({"code": "rate_limit_exceeded", "type": "server_error"}, "RESOURCE_EXHAUSTED"),
        ({"code": "unknown", "type": "not_found_error"}, "NOT_FOUND"),
        ({"code": "rate_limit_exceeded", "status": 503}, "UNAVAILABLE"),
        ({"code": 7, "type": "timeout"}, "DEADLINE_EXCEEDED"),
        ({"code": 200}, "INTERNAL"),
        ({"code": 600}, "INTERNAL"),
        ({"code": -400}, "INTERNAL"),
        ({"code": 400.5}, "INTERNAL"),
        ({"code": "٤٠٤"}, "INTERNAL"),
        ({"code": "unheard_of"}, "INTERNAL"),
        ({"code": None, "type": None}, None),
        ({"code": 0, "message": "", "details": [{}]}, None),
        ({"code": True, "type": []}, "INTERNAL"),
        ({}, None),
        ("text", "INTERNAL"),
        (True, "INTERNAL"),
        (5, "INTERNAL"),
        (["a"], "INTERNAL"),
    ],
    ids=repr,
)
def test_number_is_preferred_to_a_word_and_a_known_word_to_an_unknown_one(error, code):
    if code is None:  # an empty error says nothing
        assert get_row(read_inside_200(error)) == INVALID_RESPONSE
    else:
        assert get_row(read_inside_200(error)) == (code, "UPSTREAM_STREAM_ERROR")
        assert read_inside_200(error).upstream.http_status == 200


def test_word_never_overrides_an_http_status_line():
    for code in (*WORDS, "unheard_of", 429):
        body = json.dumps({"error": {"message": "m", "code": code}}).encode()
        assert get_row(error_from_response(500, body)) == ("INTERNAL", "UPSTREAM_INTERNAL")


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"text", b"{}", b'{"id": 1}', b'{"error": {}}', b'{"error": 0}'])
def test_200_without_completion_and_error_is_an_invalid_response(body):
    assert get_row(error_from_response(200, body)) == INVALID_RESPONSE
    assert get_row(error_from_response(206, body)) == INVALID_RESPONSE


def test_value_in_a_stream_that_is_no_envelope_is_an_excerpt():
    error = error_from_value({"x": 1}, Source(b'{"x": 1}'), named=False)
    assert get_row(error) == ("INTERNAL", "UPSTREAM_STREAM_ERROR")
    assert error.upstream == UpstreamError(http_status=200, body_excerpt='{"x": 1}')


def test_error_inside_a_200_keeps_wait_and_resource():
    body = json.dumps({"error": {"message": "m", "code": "model_not_found"}}).encode()
    error = error_from_response(200, body, asked=Asked(Resource("model", "near")), retry_after_ms=5)
    assert (error.resource, error.retry_after_ms) == (Resource("model", "near"), 5)


# Retry-After


@pytest.mark.parametrize(
    ("headers", "wait_ms"),
    [
        pytest.param([], None, id="none"),
        pytest.param([("retry-after", "0")], 0, id="no wait"),
        pytest.param([("Retry-After", " 7 ")], 7000, id="seconds"),
        pytest.param([("retry-after", "0.5")], 500, id="a fraction"),
        pytest.param([("retry-after", "0.0001")], 1, id="less than a millisecond"),
        pytest.param([("retry-after", "1.")], 1000, id="a point"),
        pytest.param([("retry-after", "007")], 7000, id="zeros"),
        pytest.param([("retry-after-ms", "250")], 250, id="milliseconds"),
        pytest.param([("retry-after-ms", "250.5")], 251, id="a fraction of a millisecond"),
        pytest.param([("retry-after", "1"), ("retry-after-ms", "500")], 500, id="the finer of two"),
        pytest.param([("retry-after", "1"), ("retry-after-ms", "soon")], 1000, id="the one that is known"),
        pytest.param([("retry-after", "Mon, 23 Nov 2026 02:13:25 GMT")], 5000, id="a date"),
        pytest.param([("retry-after", "Monday, 23-Nov-26 02:13:25 GMT")], 5000, id="a date of RFC 850"),
        pytest.param([("retry-after", "Mon Nov 23 02:13:25 2026")], 5000, id="a date of asctime"),
        pytest.param([("retry-after", "Mon, 23 Nov 2026 02:13:25 +0000")], 5000, id="a date with an offset"),
        pytest.param([("retry-after", "Mon, 23 Nov 2026 02:13:19 GMT")], 0, id="a date in the past"),
        pytest.param([("retry-after", "Mon, 01 Jan 0001 00:00:00 GMT")], 0, id="the first date"),
        pytest.param([("retry-after", "Fri, 31 Dec 9999 23:59:59 GMT")], 31_536_000_000, id="the last date"),
        pytest.param([("retry-after", "1" + "0" * 30)], 31_536_000_000, id="10^30"),
        pytest.param([("retry-after", "9" * 400)], 31_536_000_000, id="10^400"),
        pytest.param([("retry-after-ms", "9" * 400)], 31_536_000_000, id="10^400 milliseconds"),
        *(
            pytest.param([("retry-after", text)], None, id=repr(text))
            for text in (
                *("", "-1", "+1", "1e5", "inf", "nan", "soon", "1 s", "1,2", "0x10", "٣", "1_000", ".", "1.2.3"),
                *("Mon, 99 Nov 2026 02:13:25 GMT", "Mon, 23 Nov 2026 99:13:25 GMT", "Mon", "23 Nov", "0:0:0"),
            )
        ),
        pytest.param([("retry-after-ms", "Mon, 23 Nov 2026 02:13:25 GMT")], None, id="a date for milliseconds"),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers, wait_ms):
    assert parse_retry_after(headers, now_s=NOW_S) == wait_ms


def test_date_is_read_as_utc_in_every_time_zone(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        wait_ms = parse_retry_after([("retry-after", "Mon Nov 23 02:13:25 2026")], now_s=NOW_S)
    time.tzset()
    assert wait_ms == 5000


@given(
    st.text(alphabet="0123456789 :,-+.eGMTNovMonJan()/", max_size=30)
    | st.text(max_size=10)
    | st.datetimes().map(lambda moment: moment.strftime("%a, %d %b %Y %H:%M:%S GMT"))
)
def test_any_retry_after_is_a_wait_or_none(text):
    wait_ms = parse_retry_after([("retry-after", text)], now_s=NOW_S)
    assert wait_ms is None or 0 <= wait_ms <= 365 * 24 * 3600 * 1000


@pytest.mark.parametrize("path", [("error",), (), ("detail",)], ids=["in error", "beside", "in detail"])
def test_envelope_of_too_many_members_keeps_its_words(path):
    """A hundred thousand members took 10 µs each, and none of them fits into a status."""
    members = {f"k{n}": n for n in range(1000)} | {"message": "too long", "type": "invalid_request_error"}
    value: Any = members
    for key in reversed(path):
        value = {key: value}
    source = Source(spell(value).encode())
    upstream = error_from_value(value, source, named=True).upstream
    assert len(upstream.extra_json) <= 64
    if path != ("detail",):
        assert (upstream.message, upstream.type, upstream.truncated) == ("too long", "invalid_request_error", True)
