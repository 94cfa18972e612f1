import base64
import json
import time
from typing import Any

import pytest
from google.rpc import error_details_pb2 as rpc_pb2
from google.rpc import status_pb2
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bridge.core.codec import Fault, Source, parse
from bridge.core.errors import (
    BridgeError,
    Code,
    Rendered,
    Resource,
    from_error_value,
    from_response,
    invalid_request,
    redacted,
    rendered,
    retry_after_ms,
)
from ollmbridge.v1 import error_details_pb2 as details_pb2
from ollmbridge.v1.error_details_pb2 import ErrorReason, UpstreamError
from tests.core import documents, vectors
from tests.core.documents import spelled, unspelled

KIB = 1024
NOW_S = 1795400000.0
SECRET = "s3cr3ts3cr3t"
ENVELOPE = b'{"error": {"message": "m"}}'


def sent_bytes(made: Rendered) -> int:
    """All trailers as HTTP/2 counts them, by RFC 9113 and the gRPC protocol; no code of the bridge's."""
    quoted = sum(1 if 0x20 <= byte <= 0x7E and byte != 0x25 else 3 for byte in made.message.encode())
    sizes = [len("grpc-message") + quoted, len("grpc-status") + len(str(int(made.code)))]
    for name, value in made.trailers:
        raw = value if isinstance(value, bytes) else value.encode()
        sizes.append(len(name) + len(base64.b64encode(raw) if name.endswith("-bin") else raw))
    return sum(sizes) + 32 * len(sizes)


def status_of(made: Rendered) -> status_pb2.Status:
    (packed,) = [value for name, value in made.trailers if name == "grpc-status-details-bin"]
    status = status_pb2.Status.FromString(packed)
    assert (status.code, status.message) == (made.code, made.message)
    return status


def details(made: Rendered) -> dict[str, Any]:
    """The details by the name of their type; each type comes once at most."""
    found: dict[str, Any] = {}
    for packed in status_of(made).details:
        name = packed.type_url.rpartition(".")[2]
        assert name not in found
        found[name] = (UpstreamError if name == "UpstreamError" else getattr(rpc_pb2, name))()
        assert packed.Unpack(found[name])
    return found


def told(error: BridgeError, **options: Any) -> dict[str, Any]:
    return details(rendered(error, **options))


def row(error: BridgeError) -> tuple[str, str]:
    return error.code.name, error.reason_name


def inside_200(error: Any, **beside: Any) -> BridgeError:
    return from_response(200, json.dumps({"error": error, **beside}).encode())


# The table from HTTP to status, as the contract has it

BOTH, ONLY_WITH, ONLY_WITHOUT = (True, False), (True,), (False,)
INVALID_RESPONSE = ("INTERNAL", "INVALID_UPSTREAM_RESPONSE")
TABLE: list[tuple[tuple[int, ...], tuple[bool, ...], tuple[str, str]]] = [
    ((400, 413, 415, 422), BOTH, ("INVALID_ARGUMENT", "UPSTREAM_INVALID_REQUEST")),
    ((401,), BOTH, ("UNAUTHENTICATED", "UPSTREAM_UNAUTHENTICATED")),
    ((402,), BOTH, ("FAILED_PRECONDITION", "UPSTREAM_PAYMENT_REQUIRED")),
    ((403, 451), BOTH, ("PERMISSION_DENIED", "UPSTREAM_PERMISSION_DENIED")),
    ((404, 410), ONLY_WITH, ("NOT_FOUND", "UPSTREAM_NOT_FOUND")),
    ((404, 406, 411, 431), ONLY_WITHOUT, INVALID_RESPONSE),
    ((405,), BOTH, INVALID_RESPONSE),
    ((408, 504, 524), BOTH, ("DEADLINE_EXCEEDED", "UPSTREAM_PROVIDER_TIMEOUT")),
    ((409,), BOTH, ("ABORTED", "UPSTREAM_CONFLICT")),
    ((425, 429), BOTH, ("RESOURCE_EXHAUSTED", "UPSTREAM_RATE_LIMITED")),
    ((499,), BOTH, ("ABORTED", "UPSTREAM_CONFLICT")),
    ((410,), ONLY_WITHOUT, ("FAILED_PRECONDITION", "UPSTREAM_REFUSED")),
    ((406, 411, 431), ONLY_WITH, ("FAILED_PRECONDITION", "UPSTREAM_REFUSED")),
    ((501,), BOTH, ("UNIMPLEMENTED", "UPSTREAM_UNIMPLEMENTED")),
    ((502,), ONLY_WITH, ("UNAVAILABLE", "UPSTREAM_PROVIDER_FAILED")),
    ((502,), ONLY_WITHOUT, ("UNAVAILABLE", "UPSTREAM_UNAVAILABLE")),
    (
        (503, 520, 521, 522, 523, 525, 526, 527, 529, 530),
        BOTH,
        ("UNAVAILABLE", "UPSTREAM_UNAVAILABLE"),
    ),
    (tuple(range(300, 400)), BOTH, INVALID_RESPONSE),
]
ROWS = {(status, enveloped): row for statuses, cases, row in TABLE for status in statuses for enveloped in cases}


def expected_row(status: int, *, enveloped: bool) -> tuple[str, str]:
    if found := ROWS.get((status, enveloped)):
        return found
    return ("FAILED_PRECONDITION", "UPSTREAM_REFUSED") if status < 500 else ("INTERNAL", "UPSTREAM_INTERNAL")


@pytest.mark.parametrize("enveloped", [True, False], ids=["envelope", "no envelope"])
@pytest.mark.parametrize("status", range(300, 600))
def test_http_status_gives_its_row(status, enveloped):
    error = from_response(status, ENVELOPE if enveloped else b"<html>no</html>", content_type="text/html; charset=x")
    assert row(error) == expected_row(status, enveloped=enveloped)
    assert error.upstream.http_status == status
    if enveloped:
        assert error.message == "m"
        assert not error.upstream.HasField("body_excerpt")
    else:
        assert f"found HTTP {status}" in error.message
        assert error.message.endswith("with 15 bytes of text/html")
        assert error.upstream.body_excerpt == "<html>no</html>"
    info = told(error)["ErrorInfo"]
    assert (info.reason, info.metadata["httpStatus"]) == (error.reason_name, str(status))


@pytest.mark.parametrize("status", [*range(300, 400), 404, 405, 500, 200, 204, 502])
def test_empty_body_is_no_envelope(status):
    error = from_response(status, b"")
    assert row(error) == (INVALID_RESPONSE if status < 300 else expected_row(status, enveloped=False))
    assert "an empty body" in error.message


def test_unavailable_is_kept_for_what_says_that_nothing_was_generated():
    for status in range(300, 600):
        for body in (ENVELOPE, b""):
            error = from_response(status, body)
            assert (error.code is Code.UNAVAILABLE) == (status in {502, 503, *range(520, 524), 525, 526, 527, 529, 530})
            assert error.code is not Code.CANCELLED


@pytest.mark.parametrize("status", [401, 403, 451])
def test_own_key_that_is_refused_is_no_fault_of_the_caller(status):
    error = from_response(status, ENVELOPE, own_key=True)
    assert row(error) == ("INTERNAL", "CREDENTIALS_REJECTED")
    assert error.message == f"the upstream refused the bridge's own key (HTTP {status}): m"
    assert told(error)["ErrorInfo"].domain == "ollmbridge"
    assert row(from_response(status, b"", own_key=True)) == ("INTERNAL", "CREDENTIALS_REJECTED")


def test_own_key_changes_no_other_row():
    for status in {*range(300, 600)} - {401, 403, 451}:
        assert row(from_response(status, ENVELOPE, own_key=True)) == expected_row(status, enveloped=True)


@pytest.mark.parametrize("code", [401, "invalid_api_key", 403, "permission_error"])
def test_own_key_that_is_refused_inside_a_200_is_no_fault_of_the_caller(code):
    error = from_response(200, json.dumps({"error": {"message": "m", "code": code}}).encode(), own_key=True)
    assert row(error) == ("INTERNAL", "CREDENTIALS_REJECTED")


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
        ('{"error": {"message": ["m"], "code": 1.50}}', {"extra_json": {"message": '["m"]', "code": "1.50"}}),
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
        ('{"detail": "Not Found"}', {"message": "Not Found"}),
        ('{"detail": [{"loc": ["body"], "n": 1.0}]}', {"message": '[{"loc": ["body"], "n": 1.0}]'}),
        ('{"message": "m", "type": "t", "code": 7}', {"message": "m", "type": "t", "code": "7"}),
        ('{"message": "m", "error": "e"}', {"message": "m", "extra_json": {"error": '"e"'}}),
    ],
)
def test_envelope_is_read_in_each_of_its_shapes(body, upstream):
    error = from_response(404, body.encode())
    assert error.code is Code.NOT_FOUND
    assert error.upstream == UpstreamError(http_status=404, **upstream)
    assert error.message == (upstream.get("message") or "the upstream answered HTTP 404 Not Found")
    fitted = told(error)["UpstreamError"]
    assert fitted == error.upstream


@pytest.mark.parametrize(
    "body",
    ["", "null", "[]", '"text"', "5", "{}", '{"error": null}', '{"error": ""}', '{"detail": null}', '{"ok": 1}', "<p>"],
)
def test_what_is_no_envelope_is_an_excerpt(body):
    error = from_response(404, body.encode())
    assert row(error) == INVALID_RESPONSE
    assert error.upstream == UpstreamError(http_status=404, body_excerpt=body)


@pytest.mark.parametrize("name", vectors.names("errors"))
def test_recorded_error_has_its_status(name):
    answer, expected = vectors.answer("errors", name), vectors.expected("errors")[name]
    error = from_response(
        answer.status,
        answer.body,
        content_type=answer.content_type,
        retry_after_ms=retry_after_ms(answer.headers, now_s=NOW_S),
    )
    made = rendered(error, request_id="r")
    assert row(error) == (expected["code"], expected["reason"])
    assert made.message == expected["message"]
    found = details(made)
    upstream = found["UpstreamError"]
    assert (upstream.http_status, upstream.message) == (answer.status, expected["message"])
    assert (upstream.type, upstream.code) == (expected.get("upstream_type", ""), expected.get("upstream_code", ""))
    assert {key: json.loads(text) for key, text in upstream.extra_json.items()} == expected.get("extra", {})
    wait_ms = found["RetryInfo"].retry_delay.ToMilliseconds() if "RetryInfo" in found else None
    assert wait_ms == expected.get("retry_after_ms")
    assert not upstream.truncated
    assert sent_bytes(made) < 6 * KIB


@pytest.mark.parametrize("depth", [500, 990, 1_000, 1_020, 1_100, 100_000])
@pytest.mark.parametrize("status", [200, 400, 404, 503])
@pytest.mark.parametrize(
    "template", ['{"error": {"message": "m", "x": %s}}', '{"error": {"message": "m"}, "x": %s}', '{"error": %s}']
)
def test_envelope_nested_however_deep_is_a_status(template, status, depth):
    error = from_response(status, (template % ("[" * depth + "]" * depth)).encode())
    assert isinstance(error, BridgeError)
    assert error.upstream.http_status == status
    assert sent_bytes(rendered(error)) < 6 * KIB


@settings(suppress_health_check=[HealthCheck.too_slow])
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
    ).map(spelled)
    | st.text(max_size=20),
)
def test_any_body_is_a_status_within_its_size(status, body):
    error = from_response(status, body.encode())
    made = rendered(error)
    assert details(made)["ErrorInfo"].reason == error.reason_name
    assert sent_bytes(made) < 6 * KIB


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
    assert row(inside_200({"message": "m", key: word})) == (code, "UPSTREAM_STREAM_ERROR")


@pytest.mark.parametrize("status", range(400, 600))
def test_number_inside_a_200_picks_the_row(status):
    code = expected_row(status, enveloped=True)[0]
    for error in ({"code": status}, {"code": str(status)}, {"status": status}, {"status": str(status)}):
        assert row(inside_200({"message": "m", **error})) == (code, "UPSTREAM_STREAM_ERROR")
    assert row(inside_200("m", code=status)) == (code, "UPSTREAM_STREAM_ERROR")


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
        ({"code": None, "type": None}, "INTERNAL"),
        ({"code": True, "type": []}, "INTERNAL"),
        ({}, None),
        ("text", "INTERNAL"),
        (True, "INTERNAL"),
        (5, "INTERNAL"),
        (["a"], "INTERNAL"),
    ],
    ids=repr,
)
def test_number_goes_before_a_word_and_a_known_word_before_an_unknown_one(error, code):
    if code is None:  # an empty error says nothing
        assert row(inside_200(error)) == INVALID_RESPONSE
    else:
        assert row(inside_200(error)) == (code, "UPSTREAM_STREAM_ERROR")
        assert inside_200(error).upstream.http_status == 200


def test_word_never_overrides_an_http_status_line():
    for code in (*WORDS, "unheard_of", 429):
        body = json.dumps({"error": {"message": "m", "code": code}}).encode()
        assert row(from_response(500, body)) == ("INTERNAL", "UPSTREAM_INTERNAL")


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"text", b"{}", b'{"id": 1}', b'{"error": {}}', b'{"error": 0}'])
def test_200_that_is_neither_completion_nor_error_is_no_valid_response(body):
    assert row(from_response(200, body)) == INVALID_RESPONSE
    assert row(from_response(206, body)) == INVALID_RESPONSE


def test_value_in_a_stream_that_is_no_envelope_is_an_excerpt():
    error = from_error_value({"x": 1}, Source(b'{"x": 1}'), named=False)
    assert row(error) == ("INTERNAL", "UPSTREAM_STREAM_ERROR")
    assert error.upstream == UpstreamError(http_status=200, body_excerpt='{"x": 1}')


def test_wait_and_resource_come_through_an_error_inside_a_200():
    body = json.dumps({"error": {"message": "m", "code": "model_not_found"}}).encode()
    error = from_response(200, body, resource=Resource("model", "near"), retry_after_ms=5)
    assert (error.resource, error.retry_after_ms) == (Resource("model", "near"), 5)


# Details


def test_error_info_says_what_is_known():
    body = json.dumps({"error": {"message": "m", "type": "t", "code": 7, "param": "messages"}}).encode()
    info = told(from_response(422, body))["ErrorInfo"]
    assert (info.reason, info.domain) == ("UPSTREAM_INVALID_REQUEST", "upstream.ollmbridge")
    assert dict(info.metadata) == {"httpStatus": "422", "upstreamType": "t", "upstreamCode": "7", "param": "messages"}
    assert dict(told(from_response(500, ENVELOPE))["ErrorInfo"].metadata) == {"httpStatus": "500"}


@pytest.mark.parametrize("reason", [number for number in ErrorReason.values() if number])
def test_domain_says_who_decided(reason):
    info = told(BridgeError(Code.INTERNAL, reason, "m"))["ErrorInfo"]
    assert info.reason == ErrorReason.Name(reason).removeprefix("ERROR_REASON_")
    assert info.domain == ("ollmbridge" if reason >= 100 else "upstream.ollmbridge")
    assert dict(info.metadata) == {}


def test_bad_request_names_the_param():
    body = json.dumps({"error": {"message": "too long", "param": "messages[0]"}}).encode()
    (violation,) = told(from_response(400, body))["BadRequest"].field_violations
    assert (violation.field, violation.description) == ("messages[0]", "too long")
    assert "BadRequest" not in told(from_response(400, ENVELOPE))
    assert "BadRequest" not in told(from_response(500, body))


def test_bad_request_has_a_violation_a_fault():
    made = rendered(invalid_request([Fault("n", "expected 1, found 2"), Fault("model", "expected a name")]))
    assert (made.code, made.message) == (Code.INVALID_ARGUMENT, "n: expected 1, found 2 (and 1 more)")
    found = details(made)
    assert found.keys() == {"ErrorInfo", "BadRequest"}
    violations = [(each.field, each.description) for each in found["BadRequest"].field_violations]
    assert violations == [("n", "expected 1, found 2"), ("model", "expected a name")]
    assert invalid_request([Fault("n", "d")]).message == "n: d"


def test_faults_that_do_not_fit_are_counted():
    made = rendered(invalid_request([Fault(f"messages[{index}].role", "expected a role") for index in range(1000)]))
    *named, last = details(made)["BadRequest"].field_violations
    assert len(named) > 20
    assert [each.field for each in named] == [f"messages[{index}].role" for index in range(len(named))]
    assert (last.field, last.description) == ("", f"and {1000 - len(named)} more")
    assert sent_bytes(made) < 6 * KIB


@pytest.mark.parametrize("key", ["code", "type"])
@pytest.mark.parametrize("status", [429, 200, 403])
def test_quota_failure_comes_with_insufficient_quota(key, status):
    body = json.dumps({"error": {"message": "pay", key: "insufficient_quota"}}).encode()
    (violation,) = told(from_response(status, body))["QuotaFailure"].violations
    assert (violation.subject, violation.description) == ("insufficient_quota", "pay")


def test_quota_failure_comes_with_nothing_else():
    assert "QuotaFailure" not in told(from_response(429, ENVELOPE))
    assert "QuotaFailure" not in told(BridgeError(Code.RESOURCE_EXHAUSTED, details_pb2.ERROR_REASON_OVERLOADED, "m"))


def test_request_info_names_the_request():
    error = BridgeError(Code.INTERNAL, details_pb2.ERROR_REASON_BRIDGE_FAULT, "m")
    assert told(error, request_id="r-1")["RequestInfo"].request_id == "r-1"
    assert "RequestInfo" not in told(error)


@pytest.mark.parametrize("kind", ["model", "function", "variant"])
@pytest.mark.parametrize("status", [404, 410])
def test_resource_info_says_what_was_not_found(status, kind):
    info = told(from_response(status, ENVELOPE, resource=Resource(kind, "near")))["ResourceInfo"]
    assert (info.resource_type, info.resource_name) == (kind, "near")


@pytest.mark.parametrize(("status", "body"), [(400, ENVELOPE), (404, b""), (405, ENVELOPE), (503, ENVELOPE)])
def test_resource_info_comes_with_nothing_but_not_found(status, body):
    assert "ResourceInfo" not in told(from_response(status, body, resource=Resource("model", "near")))


def test_upstream_error_is_the_envelope_whole():
    usage = {"prompt_tokens": 7, "extra_json": {"cost": "1.10"}}
    upstream = UpstreamError(http_status=200, message="m", chunks_delivered=3, partial_usage=usage)
    error = BridgeError(Code.ABORTED, details_pb2.ERROR_REASON_INCOMPLETE_STREAM, "m", upstream=upstream)
    assert told(error)["UpstreamError"] == upstream


def test_details_come_in_their_order():
    body = json.dumps({"error": {"message": "m", "code": "insufficient_quota", "param": "p"}}).encode()
    error = from_response(400, body, retry_after_ms=1)
    names = [each.type_url.rpartition(".")[2] for each in status_of(rendered(error, request_id="r")).details]
    assert names == ["ErrorInfo", "RetryInfo", "RequestInfo", "BadRequest", "QuotaFailure", "UpstreamError"]


def test_error_reads_as_its_code_reason_and_message():
    assert str(from_response(409, ENVELOPE)) == "ABORTED UPSTREAM_CONFLICT: m"


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
    assert retry_after_ms(headers, now_s=NOW_S) == wait_ms


def test_date_is_of_utc_wherever_the_bridge_runs(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        wait_ms = retry_after_ms([("retry-after", "Mon Nov 23 02:13:25 2026")], now_s=NOW_S)
    time.tzset()
    assert wait_ms == 5000


@given(
    st.text(alphabet="0123456789 :,-+.eGMTNovMonJan()/", max_size=30)
    | st.text(max_size=10)
    | st.datetimes().map(lambda moment: moment.strftime("%a, %d %b %Y %H:%M:%S GMT"))
)
def test_any_retry_after_is_a_wait_or_none(text):
    wait_ms = retry_after_ms([("retry-after", text)], now_s=NOW_S)
    assert wait_ms is None or 0 <= wait_ms <= 365 * 24 * 3600 * 1000


@pytest.mark.parametrize(
    ("wait_ms", "pushback"),
    [(0, "0"), (1, "1"), (2500, "2500"), (60_000, "60000"), (60_001, "-1"), (31_536_000_000, "-1")],
)
@pytest.mark.parametrize("status", [425, 429, 503, 529])
def test_wait_is_retry_info_and_pushback(status, wait_ms, pushback):
    made = rendered(from_response(status, ENVELOPE, retry_after_ms=wait_ms))
    assert details(made)["RetryInfo"].retry_delay.ToMilliseconds() == wait_ms
    assert dict(made.trailers)["grpc-retry-pushback-ms"] == pushback


@pytest.mark.parametrize("status", [400, 402, 404, 408, 409, 500, 501])
def test_wait_for_what_may_not_be_repeated_is_no_pushback(status):
    # grpc-java would repeat it, whatever the code.
    made = rendered(from_response(status, ENVELOPE, retry_after_ms=2500))
    assert details(made)["RetryInfo"].retry_delay.ToMilliseconds() == 2500
    assert "grpc-retry-pushback-ms" not in dict(made.trailers)


def test_no_wait_is_no_retry_info_and_no_pushback():
    made = rendered(from_response(429, ENVELOPE))
    assert "RetryInfo" not in details(made)
    assert [name for name, _ in made.trailers] == ["grpc-status-details-bin"]


# Redaction


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("key sk-ollm-abc-def.", "key sk-[redacted]"),
        ("Incorrect API key provided: sk-abcd***wxyz, see", "Incorrect API key provided: sk-[redacted], see"),
        ("(SK-ABCDEF)", "(sk-[redacted])"),
        ("密钥sk-ollm-abc123无效", "密钥sk-[redacted]无效"),
        ("api_key_sk-abcdef", "api_key_sk-[redacted]"),
        (r'"line\nsk-abcdef"', r'"line\nsk-[redacted]"'),
        (r'"\u003ask-abcdef"', r'"\u003ask-[redacted]"'),
        ("Authorization: Bearer abc.def==", "Authorization: Bearer [redacted]"),
        ("BEARER\tabc", "BEARER [redacted]"),
        ("令牌Bearer abcdef", "令牌Bearer [redacted]"),
        (r"{\"auth\":\"Bearer abc\"}", r"{\"auth\":\"Bearer [redacted]\"}"),
        ("https://user:pass@host/x", "https://[redacted]@host/x"),
        ("redis://:pass@host", "redis://[redacted]@host"),
        ("https://token@host", "https://[redacted]@host"),
        (r"https:\/\/user:pass@host\/x", r"https:\/\/[redacted]@host\/x"),
        *(
            (text, text)
            for text in (
                *("task-force", "a risk-averse disk-based desk-lamp", "sk-", "sk-ab", "must start with 'Bearer '"),
                *("https://host/a@b", "mail me@host", "http://127.0.0.1:9/v1", "The basic plan has ended", ""),
            )
        ),
    ],
)
def test_what_is_shaped_like_a_key_is_struck_out(text, clean):
    assert redacted(text) == clean


SECRETS = [
    f"sk-{SECRET}",
    f"密钥sk-ollm-{SECRET}无效",
    f"a\nsk-{SECRET}",
    f"Bearer {SECRET}",
    f'{{"authorization": "Bearer {SECRET}"}}',
    f"https://user:{SECRET}@host/v1",
    f"{'x' * 90}https://user:{SECRET}@host/v1",
    f"sk-{SECRET * 20}",
]


@pytest.mark.parametrize("secret", SECRETS, ids=range(len(SECRETS)))
def test_key_is_in_no_detail(secret):
    inner = json.dumps({"error": {"message": secret}})
    envelope = {
        "error": {
            "message": secret,
            "type": secret,
            "code": secret,
            "param": secret,
            secret: 1,
            "x": secret,
            "nested": {"deep": [secret, inner]},
            "quoted": inner,
        },
        "beside": secret,
    }
    resource = Resource("model", secret)
    quota = {"error": {"message": secret, "code": "insufficient_quota", "param": secret}}
    errors = [
        *(from_response(status, json.dumps(envelope).encode(), resource=resource) for status in (200, 400, 404)),
        from_response(404, json.dumps(envelope, ensure_ascii=False).encode(), resource=resource),
        from_response(400, json.dumps(quota).encode()),
        from_response(401, json.dumps(envelope).encode(), own_key=True),
        from_response(502, f"<p>{secret}</p>".encode(), content_type=secret),
        invalid_request([Fault(secret, secret), Fault(f"extra_json[{json.dumps(secret)}]", f"found {secret!r}")]),
        BridgeError(Code.INTERNAL, details_pb2.ERROR_REASON_BRIDGE_FAULT, secret),
    ]
    for error in errors:
        made = rendered(error)
        found = details(made)
        everything = made.message + "".join(map(str, found.values())) + repr(made.trailers)
        assert SECRET not in everything
        for text in found.get("UpstreamError", UpstreamError()).extra_json.values():
            json.loads(text)


@pytest.mark.parametrize("before", range(2000, 2060))
def test_key_across_the_end_of_an_excerpt_is_struck_out(before):
    body = "x" * before + f" https://user:{SECRET}{SECRET}@host/ Bearer {SECRET}"
    made = rendered(from_response(502, body.encode()))
    assert SECRET[:6] not in str(details(made)["UpstreamError"])


# Size


def test_megabyte_of_chinese_is_a_status_within_its_size():
    body = json.dumps({"error": {"message": "错误" * 170_000, "x": "细节" * 1000}}, ensure_ascii=False).encode()
    assert len(body) > 1_000_000
    made = rendered(from_response(429, body, retry_after_ms=1500), request_id="r-1")
    assert made.code is Code.RESOURCE_EXHAUSTED
    found = details(made)
    assert found["ErrorInfo"].reason == "UPSTREAM_RATE_LIMITED"
    assert found["RetryInfo"].retry_delay.ToMilliseconds() == 1500
    assert found["UpstreamError"].truncated
    assert set(made.message) == set(found["UpstreamError"].message) == {"错", "误"}
    assert 1000 < len(made.message.encode()) <= KIB
    assert sent_bytes(made) < 6 * KIB


def test_megabyte_of_chinese_that_is_no_envelope_is_cut_and_says_so():
    made = rendered(from_response(502, ("<p>" + "错误" * 170_000).encode(), content_type="text/html"))
    assert details(made)["ErrorInfo"].reason == "UPSTREAM_UNAVAILABLE"
    upstream = details(made)["UpstreamError"]
    assert upstream.truncated
    assert len(upstream.body_excerpt) > 500
    assert set(upstream.body_excerpt) == set("<p>错误")
    assert sent_bytes(made) < 6 * KIB


def test_message_is_cut_to_a_kibibyte_on_a_characters_edge():
    for text in ("x" * 2000, "é" * 1000, "错" * 1000, "😀" * 1000):
        for shift in range(4):
            message = rendered(BridgeError(Code.INTERNAL, 112, "." * shift + text)).message
            assert KIB - 4 < len(message.encode()) <= KIB
            assert message == ("." * shift + text)[: len(message)]


def test_upstream_error_is_cut_from_its_end():
    long = {"message": "m" * 900, "type": "t", "code": "c", "param": "p", "a": "x" * 300, "b": "y" * 9000, "c": 1}
    upstream = told(from_response(400, json.dumps({"error": long}).encode()))["UpstreamError"]
    assert (upstream.message, upstream.type, upstream.code, upstream.param) == ("m" * 900, "t", "c", "p")
    assert upstream.extra_json.keys() == {"a", "c"}
    assert upstream.truncated


def test_what_fits_is_not_said_to_be_cut():
    upstream = told(from_response(400, json.dumps({"error": {"message": "m" * 900, "x": "y" * 900}}).encode()))
    assert not upstream["UpstreamError"].truncated


def test_text_that_grows_when_it_is_struck_out_stays_within_its_size():
    for text in ("sk-abcd " * 1000, "Bearer a " * 1000, "a://b@ " * 1000):
        for cut in range(0, 4000, 97):
            body = json.dumps({"error": {"message": "m", "x": text[:cut], "y": text[: cut // 3]}}).encode()
            assert sent_bytes(rendered(from_response(500, body))) < 6 * KIB


def test_surrogates_never_keep_a_status_from_going_out():
    error = BridgeError(Code.INTERNAL, 112, "a\ud800b", faults=[Fault("\udfff", "\ud83d")])
    assert rendered(error, request_id="\ud800").message == "a?b"


def test_trailers_of_the_server_come_first_and_whole():
    trailers = [("ollmbridge-upstream-ms", "12"), ("x-bin", b"\x00")]
    forwarded = [("x-request-id", "u"), ("x-ratelimit-limit", "9")]
    made = rendered(from_response(429, ENVELOPE, retry_after_ms=5), trailers=trailers, forwarded=forwarded)
    assert made.trailers[:-1] == (*trailers, ("grpc-retry-pushback-ms", "5"), *forwarded)
    assert made.trailers[-1][0] == "grpc-status-details-bin"


def test_forwarded_headers_take_no_more_than_their_share():
    made = rendered(from_response(500, ENVELOPE), forwarded=[(f"x-{index}", "v" * 100) for index in range(100)])
    assert 3 < len(made.trailers) < 10
    assert sent_bytes(made) < 6 * KIB


WORST = {
    "message": "错" * 400_000,
    "type": "类" * 5000,
    "code": "码" * 5000,
    "param": "参" * 5000,
    **{f"{index}键": "值" * 1000 for index in range(300)},
}


def test_worst_of_everything_at_once_is_within_the_size():
    error = from_response(400, json.dumps({"error": WORST}, ensure_ascii=False).encode(), retry_after_ms=31_536_000_000)
    error.faults = [Fault(f"messages[{index}].路径", "错" * 500) for index in range(1000)]
    error.resource = Resource("model", "模" * 5000)
    error.upstream.partial_usage.extra_json["x"] = "9" * 5000
    made = rendered(
        error,
        request_id="r" * 5000,
        trailers=[("ollmbridge-upstream-ms", "123456"), ("ollmbridge-first-chunk-ms", "123456")],
        forwarded=[(f"x-ratelimit-{index}", "v" * 500) for index in range(64)],
    )
    found = details(made)
    assert found["ErrorInfo"].reason == "UPSTREAM_INVALID_REQUEST"
    assert found["RetryInfo"].retry_delay.ToMilliseconds() == 31_536_000_000
    assert found["UpstreamError"].truncated
    assert found["UpstreamError"].http_status == 400
    assert sent_bytes(made) < 6 * KIB


PIECES = st.text(max_size=12) | st.sampled_from(["错误", "%", "\x00", "sk-abcdef ", "Bearer a ", "😀", '"', "a"])
LONG = st.tuples(PIECES, st.sampled_from([0, 1, 3, 40, 400, 4000])).map(lambda made: made[0] * made[1])


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    message=LONG,
    fields=st.fixed_dictionaries(
        {}, optional=dict.fromkeys(["message", "type", "code", "param", "body_excerpt"], LONG)
    ),
    extra=st.dictionaries(LONG, LONG.map(json.dumps), max_size=4),
    faults=st.tuples(LONG, LONG, st.sampled_from([0, 1, 2, 1000])),
    forwarded=st.lists(st.tuples(st.just("x-ratelimit-a"), st.integers(0, 900).map("v".__mul__)), max_size=20),
    request_id=st.integers(0, 9000).map("r".__mul__),
    wait_ms=st.none() | st.integers(0, 31_536_000_000),
    resource=st.none() | LONG.map(lambda name: Resource("variant", name)),
)
@example("%" * 4000, {"message": "%" * 4000}, {}, ("", "", 0), [], "", 1, None)
def test_any_error_is_within_the_size_and_keeps_what_must_stay(
    message, fields, extra, faults, forwarded, request_id, wait_ms, resource
):
    field, description, count = faults
    error = BridgeError(
        Code.INVALID_ARGUMENT,
        details_pb2.ERROR_REASON_UPSTREAM_INVALID_REQUEST,
        message,
        upstream=UpstreamError(http_status=400, extra_json=extra, **fields),
        faults=[Fault(field, description)] * count,
        retry_after_ms=wait_ms,
        resource=resource,
    )
    made = rendered(error, request_id=request_id, forwarded=forwarded, trailers=[("ollmbridge-upstream-ms", "1234")])
    found = details(made)
    assert sent_bytes(made) < 6 * KIB
    assert len(made.message.encode()) <= KIB
    assert found["ErrorInfo"].reason == "UPSTREAM_INVALID_REQUEST"
    assert ("RetryInfo" in found) == (wait_ms is not None)
    upstream = found["UpstreamError"]
    whole = {each.name: value for each, value in error.upstream.ListFields() if each.name != "http_status"}
    kept = {each.name: value for each, value in upstream.ListFields() if each.name not in {"http_status", "truncated"}}
    if not upstream.truncated:
        assert {key: dict(value) if key == "extra_json" else value for key, value in kept.items()} == {
            key: {redacted(name): redacted(text) for name, text in value.items()}
            if key == "extra_json"
            else redacted(value)
            for key, value in whole.items()
        }
    for text in upstream.extra_json.values():
        parse(text.encode())
        unspelled(text)


def test_bad_request_stays_beside_a_long_message():
    body = {"error": {"message": "错" * 1000, "type": "invalid_request_error", "code": "c", "param": "messages[0]"}}
    error = from_response(400, json.dumps(body).encode(), retry_after_ms=1000)
    found = told(error, request_id="01a2063e-33b0-7f6c-b64f-ec7592a3a7e8")
    assert [each.field for each in found["BadRequest"].field_violations] == ["messages[0]"]
