"""Tests of bridge/server/callers.py: who a caller is, by certificate, token or neither, and the tags of a call."""

import pytest

from bridge.core.errors import BridgeError, Code
from bridge.server.callers import Callers, collect_tags, identity_tags
from bridge.server.rpc import Caller
from bridge.settings import Settings, SettingsError
from bridge.settings.model import TagSettings
from ollmbridge.v1 import error_details_pb2 as details_pb2
from tests.kit.certificates import DNS, EMAIL, URI, create_pem

PEER = "ipv4:10.0.0.1:40000"
NO_BODY = Caller("", "peer ipv4:10.0.0.1")


def bearer(token):
    return [("authorization", f"Bearer {token}")]


ADMIN = "spiffe://prod/admin"
FULL = {"x509_pem_cert": [create_pem(DNS("a.example"), URI("spiffe://d/a"), common_name="common")]}
WITH_NAMES = {"x509_pem_cert": [create_pem(DNS("a.example"), DNS("b.example"))]}
NAMELESS = {"x509_pem_cert": [create_pem(common_name=ADMIN)]}


@pytest.fixture
def with_tokens(tmp_path):
    path = tmp_path / "tokens"
    path.write_text("# name token\nteam-a alpha\n\n  team-b\tbeta\n")
    path.chmod(0o600)
    return Callers(Settings(tokens_file=path, upstream={"api_key": "sk-own"}))


def with_identities(*identities) -> Callers:
    tls = {"cert_file": "/cert", "key_file": "/key", "client_ca_file": "/ca", "allowed_identities": identities}
    return Callers(Settings(tls=tls))


IDENTITIES = {
    "SPIFFE first": (FULL, "spiffe://d/a"),
    "else the first DNS name": (WITH_NAMES, "a.example"),
}


@pytest.mark.parametrize(("names", "expected"), IDENTITIES.values(), ids=IDENTITIES)
def test_caller_is_named_by_the_identity_of_the_certificate(names, expected):
    assert Callers(Settings()).identify(bearer("sk-a"), names, PEER) == Caller(expected, f"name {expected}")


def test_common_name_names_nobody():
    assert Callers(Settings()).identify((), NAMELESS, PEER) == NO_BODY


def test_caller_without_a_name_is_told_apart_by_address_whatever_key_it_sends():
    callers = Callers(Settings())
    assert callers.identify(bearer("sk-a"), {}, PEER) == callers.identify((), {}, PEER) == NO_BODY


BUCKETS = {
    "another port": ("ipv4:10.0.0.1:2", "peer ipv4:10.0.0.1"),
    "IPv6, by its network": ("ipv6:%5B2001:db8::1:2%5D:40000", "peer 2001:db8::/64"),
    "IPv6 in brackets": ("ipv6:[2001:db8::ffff]:1", "peer 2001:db8::/64"),
    "IPv6 with a zone": ("ipv6:%5Bfe80::1%25eth0%5D:1", "peer fe80::/64"),
    "no address": ("ipv6:nothing:1", "peer ipv6:nothing"),
    "a Unix socket": ("unix:", "peer unix"),
}


@pytest.mark.parametrize(("peer", "bucket"), BUCKETS.values(), ids=BUCKETS)
def test_callers_of_one_address_are_one(peer, bucket):
    assert Callers(Settings()).identify((), {}, peer) == Caller("", bucket)


def test_identity_on_the_list_may_call_and_is_the_name():
    callers = with_identities("b.example", "c.example")
    assert callers.identify((), WITH_NAMES, PEER) == Caller("b.example", "name b.example")


NOT_ADMIN = {
    "the id as common name": [create_pem(URI("spiffe://prod/evil"), common_name=ADMIN)],
    "a DNS name beside another id": [create_pem(URI("spiffe://prod/evil"), DNS("billing.example"))],
    "a name as common name": [create_pem(DNS("evil.dev"), common_name="billing.example")],
    "the common name alone": [create_pem(common_name="billing.example")],
    "a DNS name that reads as the id": [create_pem(DNS(ADMIN))],
    "an e-mail address": [create_pem(EMAIL("billing.example"))],
    "a NUL in a DNS name": [create_pem(DNS("billing.example\0.evil.dev"))],
    "a NUL in the id": [create_pem(URI(f"{ADMIN}\0/x"))],
    "a NUL in the common name": [create_pem(common_name=f"{ADMIN}\0x")],
    "two ids": [create_pem(URI("spiffe://prod/evil"), URI(ADMIN))],
    "no certificate": [],
}


@pytest.mark.parametrize("pems", NOT_ADMIN.values(), ids=NOT_ADMIN)
def test_certificate_that_only_resembles_one_on_the_list_is_denied(pems):
    with pytest.raises(BridgeError) as caught:
        with_identities(ADMIN, "billing.example").identify((), {"x509_pem_cert": pems}, PEER)
    assert caught.value.code is Code.PERMISSION_DENIED


def test_ambiguous_certificate_is_denied_without_a_list_too():
    pem = create_pem(URI("spiffe://a"), URI("spiffe://b"))
    with pytest.raises(BridgeError, match="identifies nobody: it has 2 URIs"):
        Callers(Settings()).identify((), {"x509_pem_cert": [pem]}, PEER)


DENIED = {
    "another identity": (FULL, "identity spiffe://d/a of the caller's certificate"),
    "no identity": ({}, "caller's certificate"),
}


@pytest.mark.parametrize(("names", "own"), DENIED.values(), ids=DENIED)
def test_identity_not_on_the_list_is_denied(names, own):
    with pytest.raises(BridgeError) as caught:
        with_identities("c.example").identify((), names, PEER)
    assert (caught.value.code, caught.value.reason) == (
        Code.PERMISSION_DENIED,
        details_pb2.ERROR_REASON_CALLER_DENIED,
    )
    assert caught.value.message == f"the {own} is not in the bridge's list (tls.allowed_identities)"


@pytest.mark.parametrize(("token", "name"), [("alpha", "team-a"), ("beta", "team-b"), (" beta ", "team-b")])
def test_caller_is_named_by_its_token(with_tokens, token, name):
    assert with_tokens.identify(bearer(token), {}, PEER) == Caller(name, f"name {name}")


def test_first_of_several_tokens_counts(with_tokens):
    assert with_tokens.identify([*bearer("beta"), *bearer("alpha")], {}, PEER).name == "team-b"


def test_certificate_names_a_caller_rather_than_its_token(with_tokens):
    assert with_tokens.identify(bearer("alpha"), FULL, PEER).name == "spiffe://d/a"


WITHOUT_TOKEN = {
    "none": ((), "this bridge requires a token in the authorization metadata, and there is none"),
    "unknown": (bearer("gamma"), "the token in the authorization metadata is unknown to this bridge"),
    "a name": (bearer("team-a"), "the token in the authorization metadata is unknown to this bridge"),
    "another scheme": (
        [("authorization", "Basic alpha")],
        "the token in the authorization metadata is unknown to this bridge",
    ),
}


@pytest.mark.parametrize(("metadata", "message"), WITHOUT_TOKEN.values(), ids=WITHOUT_TOKEN)
def test_caller_without_a_known_token_is_refused(with_tokens, metadata, message):
    with pytest.raises(BridgeError) as caught:
        with_tokens.identify(metadata, FULL, PEER)
    assert (caught.value.code, caught.value.reason) == (
        Code.UNAUTHENTICATED,
        details_pb2.ERROR_REASON_CALLER_UNAUTHENTICATED,
    )
    assert caught.value.message == message


TOKEN_FILES = {
    "three words": ("team-a alpha\na sesame c\n", "tokens_file: expected NAME TOKEN in line 2, found 3 words"),
    "nothing": ("# nobody\n", "tokens_file: expected at least one line of NAME TOKEN, found none"),
}


@pytest.mark.parametrize(("text", "message"), TOKEN_FILES.values(), ids=TOKEN_FILES)
def test_tokens_file_that_cannot_be_used_is_an_error_without_its_content(tmp_path, text, message):
    path = tmp_path / "tokens"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(SettingsError) as caught:
        Callers(Settings(tokens_file=path, upstream={"api_key": "sk-own"}))
    assert str(caught.value) == message


def test_tokens_need_a_key_of_the_bridge(tmp_path):
    with pytest.raises(SettingsError, match=r"tokens_file: expected upstream\.api_key or upstream\.api_key_file"):
        Callers(Settings(tokens_file=tmp_path / "tokens"))


TAGS = TagSettings(fixed={"cluster": "eu", "team": "none"}, metadata={"team": "x-team"}, identity="who")
TAG_CASES = {
    "fixed alone": ({}, {"cluster": "eu", "team": "none"}),
    "metadata wins over fixed": ({"x-team": "search"}, {"cluster": "eu", "team": "search"}),
    "empty metadata is none": ({"x-team": ""}, {"cluster": "eu", "team": "none"}),
    "binary metadata is none": ({"x-team": b"\xff"}, {"cluster": "eu", "team": "none"}),
    "long metadata is cut": ({"x-team": "x" * 300}, {"cluster": "eu", "team": "x" * 256}),
}


@pytest.mark.parametrize(("metadata", "expected"), TAG_CASES.values(), ids=TAG_CASES)
def test_tags_are_fixed_and_from_metadata(metadata, expected):
    assert collect_tags(TAGS, metadata) == expected


def test_identity_is_a_tag_of_its_own():
    assert identity_tags(TAGS, Caller("a", "name a")) == {"who": "a"}
    assert identity_tags(TAGS, NO_BODY) == identity_tags(TagSettings(), Caller("a", "name a")) == {}
