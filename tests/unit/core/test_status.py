import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bridge.core.errors import Asked, BridgeError, Code, Resource, Violation, invalid_request
from bridge.core.http_errors import error_from_response
from bridge.core.json_text import parse
from bridge.core.redact import redact
from bridge.core.status import to_grpc_status
from ollmbridge.v1 import error_details_pb2 as details_pb2
from ollmbridge.v1.error_details_pb2 import ErrorReason, UpstreamError
from tests.kit.documents import read_spelled
from tests.kit.statuses import STATUS_BYTES_MAX, count_sent_bytes, read_details, read_status

KIB = 1024
SECRET = "s3cr3ts3cr3t"
ENVELOPE = b'{"error": {"message": "m"}}'


def render_details(error: BridgeError, **options: Any) -> dict[str, Any]:
    return read_details(to_grpc_status(error, **options))


# Details


def test_error_info_says_what_is_known():
    body = json.dumps({"error": {"message": "m", "type": "t", "code": 7, "param": "messages"}}).encode()
    info = render_details(error_from_response(422, body))["ErrorInfo"]
    assert (info.reason, info.domain) == ("UPSTREAM_INVALID_REQUEST", "upstream.ollmbridge")
    assert dict(info.metadata) == {"httpStatus": "422", "upstreamType": "t", "upstreamCode": "7", "param": "messages"}
    assert dict(render_details(error_from_response(500, ENVELOPE))["ErrorInfo"].metadata) == {"httpStatus": "500"}


@pytest.mark.parametrize("reason", [number for number in ErrorReason.values() if number])
def test_domain_says_whose_decision_it_was(reason):
    info = render_details(BridgeError(Code.INTERNAL, reason, "m"))["ErrorInfo"]
    assert info.reason == ErrorReason.Name(reason).removeprefix("ERROR_REASON_")
    assert info.domain == ("ollmbridge" if reason >= 100 else "upstream.ollmbridge")
    assert dict(info.metadata) == {}


def test_bad_request_names_the_param():
    body = json.dumps({"error": {"message": "too long", "param": "messages[0]"}}).encode()
    (violation,) = render_details(error_from_response(400, body))["BadRequest"].field_violations
    assert (violation.field, violation.description) == ("messages[0]", "too long")
    assert "BadRequest" not in render_details(error_from_response(400, ENVELOPE))
    assert "BadRequest" not in render_details(error_from_response(500, body))


def test_bad_request_has_every_violation():
    status = to_grpc_status(
        invalid_request([Violation("n", "expected 1, found 2"), Violation("model", "expected a name")])
    )
    assert (status.code, status.message) == (Code.INVALID_ARGUMENT, "n: expected 1, found 2 (and 1 more)")
    found = read_details(status)
    assert found.keys() == {"ErrorInfo", "BadRequest"}
    violations = [(each.field, each.description) for each in found["BadRequest"].field_violations]
    assert violations == [("n", "expected 1, found 2"), ("model", "expected a name")]
    assert invalid_request([Violation("n", "d")]).message == "n: d"


def test_violations_that_do_not_fit_are_counted():
    status = to_grpc_status(
        invalid_request([Violation(f"messages[{index}].role", "expected a role" * 4) for index in range(100)])
    )
    *named, last = read_details(status)["BadRequest"].field_violations
    assert len(named) > 20
    assert [each.field for each in named] == [f"messages[{index}].role" for index in range(len(named))]
    assert (last.field, last.description) == ("", f"and {100 - len(named)} more")
    assert count_sent_bytes(*status) < STATUS_BYTES_MAX


@pytest.mark.parametrize("key", ["code", "type"])
@pytest.mark.parametrize("status", [429, 200, 403])
def test_quota_failure_comes_with_insufficient_quota(key, status):
    body = json.dumps({"error": {"message": "pay", key: "insufficient_quota"}}).encode()
    (violation,) = render_details(error_from_response(status, body))["QuotaFailure"].violations
    assert (violation.subject, violation.description) == ("insufficient_quota", "pay")


def test_quota_failure_comes_with_nothing_else():
    assert "QuotaFailure" not in render_details(error_from_response(429, ENVELOPE))
    assert "QuotaFailure" not in render_details(
        BridgeError(Code.RESOURCE_EXHAUSTED, details_pb2.ERROR_REASON_OVERLOADED, "m")
    )


def test_request_info_names_the_request():
    error = BridgeError(Code.INTERNAL, details_pb2.ERROR_REASON_BRIDGE_FAULT, "m")
    assert render_details(error, request_id="r-1")["RequestInfo"].request_id == "r-1"
    assert "RequestInfo" not in render_details(error)


@pytest.mark.parametrize("kind", ["model", "function", "variant"])
@pytest.mark.parametrize("status", [404, 410])
def test_resource_info_names_the_resource_that_was_not_found(status, kind):
    info = render_details(error_from_response(status, ENVELOPE, asked=Asked(Resource(kind, "near"))))["ResourceInfo"]
    assert (info.resource_type, info.resource_name) == (kind, "near")


@pytest.mark.parametrize(("status", "body"), [(400, ENVELOPE), (404, b""), (405, ENVELOPE), (503, ENVELOPE)])
def test_resource_info_comes_with_nothing_but_not_found(status, body):
    assert "ResourceInfo" not in render_details(
        error_from_response(status, body, asked=Asked(Resource("model", "near")))
    )


def test_upstream_error_is_the_envelope_whole():
    usage = {"prompt_tokens": 7, "extra_json": {"cost": "1.10"}}
    upstream = UpstreamError(http_status=200, message="m", chunks_delivered=3, partial_usage=usage)
    error = BridgeError(Code.ABORTED, details_pb2.ERROR_REASON_INCOMPLETE_COMPLETION, "m", upstream=upstream)
    assert render_details(error)["UpstreamError"] == upstream


def test_details_come_in_their_order():
    body = json.dumps({"error": {"message": "m", "code": "insufficient_quota", "param": "p"}}).encode()
    error = error_from_response(400, body, retry_after_ms=1)
    names = [each.type_url.rpartition(".")[2] for each in read_status(to_grpc_status(error, request_id="r")).details]
    assert names == ["ErrorInfo", "RetryInfo", "RequestInfo", "BadRequest", "QuotaFailure", "UpstreamError"]


# Waits


@pytest.mark.parametrize(
    ("wait_ms", "pushback"),
    [(0, "0"), (1, "1"), (2500, "2500"), (60_000, "60000"), (60_001, "-1"), (31_536_000_000, "-1")],
)
@pytest.mark.parametrize("status", [425, 429, 503, 529])
def test_wait_is_retry_info_and_pushback(status, wait_ms, pushback):
    status = to_grpc_status(error_from_response(status, ENVELOPE, retry_after_ms=wait_ms))
    assert read_details(status)["RetryInfo"].retry_delay.ToMilliseconds() == wait_ms
    assert dict(status.trailers)["grpc-retry-pushback-ms"] == pushback


@pytest.mark.parametrize("status", [400, 402, 404, 408, 409, 500, 501])
def test_wait_for_a_call_that_may_not_be_retried_is_no_pushback(status):
    # grpc-java would retry it, whatever the code.
    status = to_grpc_status(error_from_response(status, ENVELOPE, retry_after_ms=2500))
    assert read_details(status)["RetryInfo"].retry_delay.ToMilliseconds() == 2500
    assert "grpc-retry-pushback-ms" not in dict(status.trailers)


def test_no_wait_is_no_retry_info_and_no_pushback():
    status = to_grpc_status(error_from_response(429, ENVELOPE))
    assert "RetryInfo" not in read_details(status)
    assert [name for name, _ in status.trailers] == ["grpc-status-details-bin"]


# Keys

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
    asked = Asked(Resource("model", secret))
    quota = {"error": {"message": secret, "code": "insufficient_quota", "param": secret}}
    errors = [
        *(error_from_response(status, json.dumps(envelope).encode(), asked=asked) for status in (200, 400, 404)),
        error_from_response(404, json.dumps(envelope, ensure_ascii=False).encode(), asked=asked),
        error_from_response(400, json.dumps(quota).encode()),
        error_from_response(401, json.dumps(envelope).encode(), asked=Asked(own_key=True)),
        error_from_response(502, f"<p>{secret}</p>".encode(), content_type=secret),
        invalid_request(
            [Violation(secret, secret), Violation(f"extra_json[{json.dumps(secret)}]", f"found {secret!r}")]
        ),
        BridgeError(Code.INTERNAL, details_pb2.ERROR_REASON_BRIDGE_FAULT, secret),
    ]
    for error in errors:
        status = to_grpc_status(error)
        found = read_details(status)
        everything = status.message + "".join(map(str, found.values())) + repr(status.trailers)
        assert SECRET not in everything
        for text in found.get("UpstreamError", UpstreamError()).extra_json.values():
            json.loads(text)


@pytest.mark.parametrize("before", range(2000, 2060))
def test_key_across_the_end_of_an_excerpt_is_redacted(before):
    body = "x" * before + f" https://user:{SECRET}{SECRET}@host/ Bearer {SECRET}"
    status = to_grpc_status(error_from_response(502, body.encode()))
    assert SECRET[:6] not in str(read_details(status)["UpstreamError"])


# Size


def test_megabyte_of_chinese_is_a_status_within_its_size():
    body = json.dumps({"error": {"message": "错误" * 170_000, "x": "细节" * 1000}}, ensure_ascii=False).encode()
    assert len(body) > 1_000_000
    status = to_grpc_status(error_from_response(429, body, retry_after_ms=1500), request_id="r-1")
    assert status.code is Code.RESOURCE_EXHAUSTED
    found = read_details(status)
    assert found["ErrorInfo"].reason == "UPSTREAM_RATE_LIMITED"
    assert found["RetryInfo"].retry_delay.ToMilliseconds() == 1500
    assert found["UpstreamError"].truncated
    assert set(status.message) == set(found["UpstreamError"].message) == {"错", "误"}
    assert 1000 < len(status.message.encode()) <= KIB
    assert count_sent_bytes(*status) < STATUS_BYTES_MAX


def test_megabyte_of_chinese_that_is_no_envelope_is_cut_and_says_so():
    status = to_grpc_status(error_from_response(502, ("<p>" + "错误" * 170_000).encode(), content_type="text/html"))
    assert read_details(status)["ErrorInfo"].reason == "UPSTREAM_UNAVAILABLE"
    upstream = read_details(status)["UpstreamError"]
    assert upstream.truncated
    assert len(upstream.body_excerpt) > 500
    assert set(upstream.body_excerpt) == set("<p>错误")
    assert count_sent_bytes(*status) < STATUS_BYTES_MAX


def test_message_is_cut_to_a_kibibyte_on_a_characters_edge():
    for text in ("x" * 2000, "é" * 1000, "错" * 1000, "😀" * 1000):
        for shift in range(4):
            message = to_grpc_status(BridgeError(Code.INTERNAL, 112, "." * shift + text)).message
            assert KIB - 4 < len(message.encode()) <= KIB
            assert message == ("." * shift + text)[: len(message)]


def test_upstream_error_is_cut_from_its_end():
    long = {"message": "m" * 900, "type": "t", "code": "c", "param": "p", "a": "x" * 300, "b": "y" * 9000, "c": 1}
    upstream = render_details(error_from_response(400, json.dumps({"error": long}).encode()))["UpstreamError"]
    assert (upstream.message, upstream.type, upstream.code, upstream.param) == ("m" * 900, "t", "c", "p")
    assert upstream.extra_json.keys() == {"a", "c"}
    assert upstream.truncated


def test_error_that_fits_is_not_called_truncated():
    upstream = render_details(
        error_from_response(400, json.dumps({"error": {"message": "m" * 900, "x": "y" * 900}}).encode())
    )
    assert not upstream["UpstreamError"].truncated


def test_text_that_grows_when_it_is_redacted_stays_within_its_size():
    for text in ("sk-abcd " * 1000, "Bearer a " * 1000, "a://b@ " * 1000):
        for cut in range(0, 4000, 97):
            body = json.dumps({"error": {"message": "m", "x": text[:cut], "y": text[: cut // 3]}}).encode()
            assert count_sent_bytes(*to_grpc_status(error_from_response(500, body))) < STATUS_BYTES_MAX


def test_surrogates_never_keep_a_status_from_going_out():
    error = BridgeError(Code.INTERNAL, 112, "a\ud800b", violations=[Violation("\udfff", "\ud83d")])
    assert to_grpc_status(error, request_id="\ud800").message == "a?b"


def test_trailers_of_the_server_come_first_and_whole():
    trailers = [("ollmbridge-upstream-ms", "12"), ("x-bin", b"\x00")]
    forwarded = [("x-request-id", "u"), ("x-ratelimit-limit", "9")]
    status = to_grpc_status(
        error_from_response(429, ENVELOPE, retry_after_ms=5), trailers=trailers, forwarded=forwarded
    )
    assert status.trailers[:-1] == (*trailers, ("grpc-retry-pushback-ms", "5"), *forwarded)
    assert status.trailers[-1][0] == "grpc-status-details-bin"


def test_forwarded_headers_take_no_more_than_their_share():
    status = to_grpc_status(
        error_from_response(500, ENVELOPE), forwarded=[(f"x-{index}", "v" * 100) for index in range(100)]
    )
    assert 3 < len(status.trailers) < 10
    assert count_sent_bytes(*status) < STATUS_BYTES_MAX


WORST = {
    "message": "错" * 400_000,
    "type": "类" * 5000,
    "code": "码" * 5000,
    "param": "参" * 5000,
    **{f"{index}键": "值" * 1000 for index in range(300)},
}


def test_worst_of_everything_at_once_is_within_the_size():
    error = error_from_response(
        400, json.dumps({"error": WORST}, ensure_ascii=False).encode(), retry_after_ms=31_536_000_000
    )
    error = replace(
        error,
        violations=[Violation(f"messages[{index}].路径", "错" * 500) for index in range(1000)],
        resource=Resource("model", "模" * 5000),
    )
    error.upstream.partial_usage.extra_json["x"] = "9" * 5000
    status = to_grpc_status(
        error,
        request_id="r" * 5000,
        trailers=[("ollmbridge-upstream-ms", "123456"), ("ollmbridge-first-chunk-ms", "123456")],
        forwarded=[(f"x-ratelimit-{index}", "v" * 500) for index in range(64)],
    )
    found = read_details(status)
    assert found["ErrorInfo"].reason == "UPSTREAM_INVALID_REQUEST"
    assert found["RetryInfo"].retry_delay.ToMilliseconds() == 31_536_000_000
    assert found["UpstreamError"].truncated
    assert found["UpstreamError"].http_status == 400
    assert count_sent_bytes(*status) < STATUS_BYTES_MAX


PIECES = st.text(max_size=12) | st.sampled_from(["错误", "%", "\x00", "sk-abcdef ", "Bearer a ", "😀", '"', "a"])
LONG = st.tuples(PIECES, st.sampled_from([0, 1, 3, 40, 400, 4000])).map(lambda drawn: drawn[0] * drawn[1])


@settings(suppress_health_check=[HealthCheck.data_too_large])
@given(
    message=LONG,
    fields=st.fixed_dictionaries(
        {}, optional=dict.fromkeys(["message", "type", "code", "param", "body_excerpt"], LONG)
    ),
    extra=st.dictionaries(LONG, LONG.map(json.dumps), max_size=4),
    violations=st.tuples(LONG, LONG, st.sampled_from([0, 1, 2, 1000])),
    forwarded=st.lists(st.tuples(st.just("x-ratelimit-a"), st.integers(0, 900).map("v".__mul__)), max_size=20),
    request_id=st.integers(0, 9000).map("r".__mul__),
    wait_ms=st.none() | st.integers(0, 31_536_000_000),
    resource=st.none() | LONG.map(lambda name: Resource("variant", name)),
)
@example("%" * 4000, {"message": "%" * 4000}, {}, ("", "", 0), [], "", 1, None)
def test_any_error_is_within_the_size_and_keeps_what_must_stay(
    message, fields, extra, violations, forwarded, request_id, wait_ms, resource
):
    field, description, count = violations
    error = BridgeError(
        Code.INVALID_ARGUMENT,
        details_pb2.ERROR_REASON_UPSTREAM_INVALID_REQUEST,
        message,
        upstream=UpstreamError(http_status=400, extra_json=extra, **fields),
        violations=[Violation(field, description)] * count,
        retry_after_ms=wait_ms,
        resource=resource,
    )
    status = to_grpc_status(
        error, request_id=request_id, forwarded=forwarded, trailers=[("ollmbridge-upstream-ms", "1234")]
    )
    found = read_details(status)
    assert count_sent_bytes(*status) < STATUS_BYTES_MAX
    assert len(status.message.encode()) <= KIB
    assert found["ErrorInfo"].reason == "UPSTREAM_INVALID_REQUEST"
    assert ("RetryInfo" in found) == (wait_ms is not None)
    upstream = found["UpstreamError"]
    whole = {each.name: value for each, value in error.upstream.ListFields() if each.name != "http_status"}
    kept = {each.name: value for each, value in upstream.ListFields() if each.name not in {"http_status", "truncated"}}
    if not upstream.truncated:
        assert {key: dict(value) if key == "extra_json" else value for key, value in kept.items()} == {
            key: {redact(name): redact(text) for name, text in value.items()} if key == "extra_json" else redact(value)
            for key, value in whole.items()
        }
    for text in upstream.extra_json.values():
        parse(text.encode())
        read_spelled(text)


def test_bad_request_stays_beside_a_long_message():
    body = {"error": {"message": "错" * 1000, "type": "invalid_request_error", "code": "c", "param": "messages[0]"}}
    error = error_from_response(400, json.dumps(body).encode(), retry_after_ms=1000)
    found = render_details(error, request_id="01a2063e-33b0-7f6c-b64f-ec7592a3a7e8")
    assert [each.field for each in found["BadRequest"].field_violations] == ["messages[0]"]
