import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.errors import BridgeError
from bridge.core.headers import (
    METADATA_BYTES_MAX,
    METADATA_ENTRIES_MAX,
    RETURNED_BYTES_MAX,
    HeaderPolicy,
    add_request_id,
    find_request_id,
)

PRODUCT = "ollm-bridge/1.0"
PLAIN = HeaderPolicy(product=PRODUCT)
OWN_KEY = HeaderPolicy(product=PRODUCT, api_key=lambda: "sk-own")

# Belong to one hop, to gRPC or to a proxy: never cross to the upstream.
NEVER = [
    *("grpc-timeout", "grpc-encoding", "grpc-accept-encoding", "grpc-trace-bin", "x-trace-bin", "te", "host"),
    *("content-type", "content-length", "content-encoding", "connection", "transfer-encoding", "cookie"),
    *("x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "forwarded", "keep-alive", "upgrade", "trailer"),
    *("proxy-authorization", "proxy-connection", "expect", "accept-encoding", "user-agent"),
]
FORWARDED = {"authorization", "traceparent", "tracestate", "idempotency-key", "x-request-id", "user-agent"}
NEVER_BACK = [
    *("grpc-status", "grpc-message", "grpc-status-details-bin", "x-foo-bin", "content-type", "content-length", "te"),
    *("content-encoding", "connection", "transfer-encoding", "set-cookie", "keep-alive", "trailer", "upgrade"),
    *("proxy-authenticate",),
]


def send(policy: HeaderPolicy = PLAIN, *metadata: tuple[str, str | bytes]) -> dict[str, str]:
    headers = policy.request_headers(metadata, request_id="ours")
    assert len(headers) == len(dict(headers))
    return dict(headers)


def refuse(*metadata: tuple[str, str | bytes], policy: HeaderPolicy = PLAIN) -> str:
    with pytest.raises(BridgeError) as caught:
        policy.request_headers(metadata, request_id="ours")
    assert (caught.value.code.name, caught.value.reason_name) == ("INVALID_ARGUMENT", "INVALID_METADATA")
    return caught.value.message


# Authorization


def test_authorization_is_forwarded_as_it_is():
    assert send(PLAIN, ("authorization", "Bearer  sk-Ab_c= "))["authorization"] == "Bearer  sk-Ab_c= "


def test_without_authorization_none_is_sent():
    assert "authorization" not in send()


@pytest.mark.parametrize(
    "metadata",
    [[], [("authorization", "Bearer theirs")], [("authorization", "a"), ("authorization", "b")]],
    ids=["none", "one", "two"],
)
def test_own_key_is_sent_in_place_of_the_callers(metadata):
    assert send(OWN_KEY, *metadata)["authorization"] == "Bearer sk-own"
    assert (OWN_KEY.own_key, PLAIN.own_key) == (True, False)


def test_own_key_is_not_mixed_with_a_forwarded_authorization():
    policy = HeaderPolicy(product=PRODUCT, api_key=lambda: "sk-own", forward=["authorization"])
    assert send(policy, ("authorization", "Bearer theirs"))["authorization"] == "Bearer sk-own"


def test_several_authorizations_are_refused_without_their_values():
    message = refuse(("authorization", "Bearer sk-one"), ("authorization", "Bearer sk-two"))
    assert "sk-" not in message


@pytest.mark.parametrize("value", ["Bearer sk-ключ", "Bearer sk-\x00", "Bearer sk-a\r\nx: y"], ids=ascii)
def test_authorization_that_is_not_printable_is_refused_without_its_value(value):
    assert "sk-" not in refuse(("authorization", value))


# User agent


@pytest.mark.parametrize(
    ("user_agent", "product"),
    [
        ("grpc-python/1.83.2 grpc-c/51.0.0 (linux; chttp2)", ""),
        ("grpc-python-asyncio/1.83.2 grpc-c/51.0.0 (linux; chttp2)", ""),
        ("shop/2.1 grpc-python/1.83.2 grpc-c/51.0.0 (linux; chttp2)", "shop/2.1"),
        ("shop/2.1 (eu; batch) grpc-python/1.83.2 grpc-c/51.0.0", "shop/2.1 (eu; batch)"),
        ("grpc-go/1.70.0", ""),
        ("shop/2.1 grpc-go/1.70.0", "shop/2.1"),
        ("grpc-java-netty/1.60.0", ""),
        ("shop grpc-java-netty/1.60.0", "shop"),
        ("shop/2.1 grpc-node-js/1.10.0", "shop/2.1"),
        ("grpc-dotnet/2.60.0 (.NET 8.0.0; CLR 8.0.0; net8.0; linux; x64)", ""),
        ("tonic/0.12.3", "tonic/0.12.3"),
        ("shop/2.1 tonic/0.12.3", "shop/2.1 tonic/0.12.3"),
        ("connect-go/1.16.0 (go1.22.0)", "connect-go/1.16.0 (go1.22.0)"),
        ("my-grpc-client/1.0", "my-grpc-client/1.0"),
        ("a grpc-x b grpc-y", "a"),
        ("", ""),
        ("  ", ""),
    ],
)
def test_user_agent_is_the_callers_product_and_then_ours(user_agent, product):
    expected = f"{product} {PRODUCT}" if product else PRODUCT
    assert send(PLAIN, ("user-agent", user_agent))["user-agent"] == expected


def test_without_a_user_agent_ours_is_sent():
    assert send()["user-agent"] == PRODUCT


def test_user_agent_that_is_not_printable_is_refused():
    refuse(("user-agent", "shop\r\nx: y grpc-go/1.70.0"))


# What crosses


@pytest.mark.parametrize(
    ("metadata", "found"),
    [([], ""), ([""], ""), (["a"], "a"), (["a", "b"], "a"), (["", "b"], "b")],
)
def test_first_request_id_of_the_caller_is_the_calls(metadata, found):
    assert find_request_id([("other", "x"), *(("x-request-id", value) for value in metadata)]) == found


def test_one_request_id_is_sent_whatever_the_metadata_has():
    several = [("x-request-id", "theirs"), ("x-request-id", "second")]
    headers = PLAIN.request_headers(several, request_id="the call's")
    assert [value for name, value in headers if name == "x-request-id"] == ["the call's"]


def test_one_request_id_is_returned_the_first():
    headers = [("x-request-id", "first"), ("X-Request-Id", "second"), ("retry-after", "1")]
    assert PLAIN.returned_metadata(headers) == [("x-request-id", "first"), ("retry-after", "1")]


def test_trace_context_crosses():
    headers = send(PLAIN, ("traceparent", "00-a-b-01"), ("tracestate", "a=1"), ("tracestate", "b=2"))
    assert headers["traceparent"] == "00-a-b-01"
    assert headers["tracestate"] == "a=1, b=2"


def test_first_idempotency_key_crosses_alone():
    headers = send(PLAIN, ("idempotency-key", "k-1"), ("idempotency-key", "k-2"))
    assert headers["idempotency-key"] == "k-1"
    assert "idempotency-key" in refuse(("idempotency-key", "k-1"), ("idempotency-key", "é"))


@pytest.mark.parametrize(
    "name",
    [
        *("x-request-id", "authorization", "traceparent", "idempotency-key", "accept", "content-type", "user-agent"),
        *("grpc-timeout", "x-team-id", "X-Time", "host", ""),
    ],
)
def test_header_of_the_deadline_must_be_one_that_nothing_else_sets(name):
    with pytest.raises(ValueError, match="expected"):
        HeaderPolicy(product=PRODUCT, forward=["x-team-id"], deadline_header=name)
    HeaderPolicy(product=PRODUCT, forward=["x-team-id"], deadline_header="x-envoy-expected-rq-timeout-ms")


def test_only_what_is_listed_crosses():
    policy = HeaderPolicy(product=PRODUCT, forward=["x-team-id"])
    headers = send(policy, ("x-team-id", "t"), ("x-other", "o"), ("accept", "a"))
    assert headers == {"x-team-id": "t", "x-request-id": "ours", "user-agent": PRODUCT}
    assert "x-team-id" not in send(PLAIN, ("x-team-id", "t"))


@pytest.mark.parametrize("name", NEVER)
def test_header_of_one_hop_never_crosses(name):
    value: str | bytes = b"v" if name.endswith("-bin") else "v"
    assert set(send(PLAIN, (name, value))) == {"x-request-id", "user-agent"}
    if name != "user-agent":
        assert "v" not in send(PLAIN, (name, value)).values()
    with pytest.raises(ValueError, match="may be forwarded"):
        HeaderPolicy(product=PRODUCT, forward=[name])


@pytest.mark.parametrize("name", ["X-Team", "", "a b", "a:b", "ключ", "x-team\n", ":path"])
def test_name_that_is_no_metadata_key_is_refused_at_the_start(name):
    with pytest.raises(ValueError, match="found"):
        HeaderPolicy(product=PRODUCT, forward=[name])
    with pytest.raises(ValueError, match="found"):
        HeaderPolicy(product=PRODUCT, return_headers=[name])


@pytest.mark.parametrize("value", ["\x00", "a\r\nb: c", "a\n", "\t", "é", "\x7f", "你", b"bytes"], ids=ascii)
@pytest.mark.parametrize("name", ["x-request-id", "traceparent", "x-team-id"])
def test_forwarded_value_that_is_not_printable_ascii_is_refused(name, value):
    assert name in refuse((name, value), policy=HeaderPolicy(product=PRODUCT, forward=["x-team-id"]))


def test_value_that_is_not_forwarded_is_not_judged():
    assert send(PLAIN, ("x-other", "é"), ("x-other-bin", b"\xff"))["x-request-id"] == "ours"


@given(st.lists(st.tuples(st.sampled_from([*NEVER, "x-a", "authorization", "traceparent"]), st.text(max_size=5))))
def test_any_metadata_becomes_printable_listed_headers_or_is_refused(metadata):
    if any(name in FORWARDED and not (value.isascii() and value.isprintable()) for name, value in metadata) or (
        [name for name, value in metadata if value].count("authorization") > 1
    ):
        refuse(*metadata)
        return
    headers = PLAIN.request_headers(metadata, request_id="ours")
    assert {name for name, _ in headers} <= {"authorization", "traceparent", "x-request-id", "user-agent"}
    assert all(value.isascii() and value.isprintable() for _, value in headers)


# Size


def test_metadata_of_64_entries_is_accepted_and_of_65_refused():
    send(PLAIN, *[("a", "b")] * METADATA_ENTRIES_MAX)
    assert "65" in refuse(*[("a", "b")] * (METADATA_ENTRIES_MAX + 1))


def test_metadata_of_8_kib_is_accepted_and_of_more_refused():
    send(PLAIN, ("a", "b" * (METADATA_BYTES_MAX - 1)))
    assert "8193" in refuse(("a", "b" * METADATA_BYTES_MAX))
    assert "8193" in refuse(("a-bin", b"b" * (METADATA_BYTES_MAX - 4)))
    assert (METADATA_BYTES_MAX, METADATA_ENTRIES_MAX) == (8192, 64)


# What comes back


@pytest.mark.parametrize(
    "name",
    [
        *("x-request-id", "x-ratelimit-limit-requests", "x-ratelimit-remaining-tokens", "retry-after"),
        *("openai-processing-ms", "x-tensorzero-gateway-version", "x-ollm-gateway-version", "X-Request-ID"),
    ],
)
def test_header_of_the_answer_comes_back(name):
    assert PLAIN.returned_metadata([(name, "v")]) == [(name.lower(), "v")]


@pytest.mark.parametrize(
    "name", [*NEVER_BACK, "date", "server", "x-other", "x-ratelimit-a-bin", "retry-after-ms-bin", "gateway-version"]
)
def test_other_header_of_the_answer_stays(name):
    assert PLAIN.returned_metadata([(name, "v")]) == []


@pytest.mark.parametrize("name", NEVER_BACK)
def test_header_that_never_comes_back_can_not_be_configured(name):
    with pytest.raises(ValueError, match="may be returned"):
        HeaderPolicy(product=PRODUCT, return_headers=[name])


def test_configured_header_comes_back():
    policy = HeaderPolicy(product=PRODUCT, return_headers=["x-attestation"])
    assert policy.returned_metadata([("X-Attestation", "v"), ("date", "d")]) == [("x-attestation", "v")]


@pytest.mark.parametrize("value", ["é", "a\nb", "\x00"], ids=ascii)
def test_value_that_grpc_can_not_carry_stays(value):
    assert PLAIN.returned_metadata([("x-request-id", value), ("retry-after", "1")]) == [("retry-after", "1")]


@pytest.mark.parametrize(
    ("returned", "request_id", "expected"),
    [
        ([("retry-after", "1")], "mine", [("x-request-id", "mine"), ("retry-after", "1")]),
        ([("x-request-id", "theirs")], "mine", [("x-request-id", "theirs")]),
        ([], "x" * 512, [("x-request-id", "x" * 512)]),
        ([], "x" * 513, []),
        ([], "a\nb", []),
        ([], "é", []),
        ([], "", []),
    ],
)
def test_request_id_comes_back_whatever_the_upstream_returns(returned, request_id, expected):
    assert add_request_id(returned, request_id) == expected


def test_headers_that_come_back_are_bounded():
    returned = PLAIN.returned_metadata([(f"x-ratelimit-{index}", "v" * 100) for index in range(1000)])
    assert 10 < len(returned) < 1000
    assert sum(len(name) + len(value) + 32 for name, value in returned) <= RETURNED_BYTES_MAX
