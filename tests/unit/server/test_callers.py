"""Tests of bridge/server/callers.py: who a caller is, by certificate, token or neither, and the tags of a call."""

import pytest

from bridge.core.errors import BridgeError, Code
from bridge.server.callers import Caller, Callers, collect_tags
from bridge.settings import Settings, SettingsError
from bridge.settings.model import TagSettings
from ollmbridge.v1 import error_details_pb2 as details_pb2

PEER = "ipv4:10.0.0.1:40000"
NO_BODY = Caller("", "peer ipv4:10.0.0.1")


def bearer(token):
    return {"authorization": f"Bearer {token}"}


def certificate(**names):
    return {name: [text.encode() for text in texts] for name, texts in names.items()}


FULL = certificate(
    x509_common_name=["common"],
    x509_subject_alternative_name=["a.example", "b.example"],
    peer_spiffe_id=["spiffe://d/a"],
)


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
    "else the alternative name": (certificate(x509_common_name=["c"], x509_subject_alternative_name=["a"]), "a"),
    "else the common name": (certificate(x509_common_name=["c"]), "c"),
    "not UTF-8": ({"x509_common_name": [b"\xff"]}, "\ufffd"),
}


@pytest.mark.parametrize(("names", "expected"), IDENTITIES.values(), ids=IDENTITIES)
def test_caller_is_named_by_the_strongest_identity_of_the_certificate(names, expected):
    assert Callers(Settings()).identify(bearer("sk-a"), names, PEER) == Caller(expected, f"name {expected}")


def test_caller_without_a_name_is_told_apart_by_key_and_without_a_key_by_address():
    callers = Callers(Settings(calls_per_caller_max=1))
    first, second = (callers.identify(bearer(key), {}, PEER) for key in ("sk-a", "sk-b"))
    assert first.name == second.name == ""
    assert first.bucket != second.bucket
    assert "sk-a" not in first.bucket
    assert callers.identify({}, {}, PEER) == NO_BODY


def test_identity_on_the_list_may_call_and_is_the_name():
    callers = with_identities("b.example", "c.example")
    assert callers.identify({}, FULL, PEER) == Caller("b.example", "name b.example")


DENIED = {
    "another identity": (FULL, "identity spiffe://d/a of the caller's certificate"),
    "no identity": ({}, "caller's certificate"),
}


@pytest.mark.parametrize(("names", "own"), DENIED.values(), ids=DENIED)
def test_identity_not_on_the_list_is_denied(names, own):
    with pytest.raises(BridgeError) as caught:
        with_identities("c.example").identify({}, names, PEER)
    assert (caught.value.code, caught.value.reason) == (
        Code.PERMISSION_DENIED,
        details_pb2.ERROR_REASON_CALLER_DENIED,
    )
    assert caught.value.message == f"the {own} is not in the bridge's list (tls.allowed_identities)"


@pytest.mark.parametrize(("token", "name"), [("alpha", "team-a"), ("beta", "team-b"), (" beta ", "team-b")])
def test_caller_is_named_by_its_token(with_tokens, token, name):
    assert with_tokens.identify(bearer(token), {}, PEER) == Caller(name, f"name {name}")


def test_certificate_names_a_caller_rather_than_its_token(with_tokens):
    assert with_tokens.identify(bearer("alpha"), FULL, PEER).name == "spiffe://d/a"


WITHOUT_TOKEN = {
    "none": ({}, "this bridge requires a token in the authorization metadata, and there is none"),
    "unknown": (bearer("gamma"), "the token in the authorization metadata is unknown to this bridge"),
    "a name": (bearer("team-a"), "the token in the authorization metadata is unknown to this bridge"),
    "another scheme": (
        {"authorization": "Basic alpha"},
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
    "fixed alone": ({}, NO_BODY, {"cluster": "eu", "team": "none"}),
    "metadata wins over fixed": ({"x-team": "search"}, NO_BODY, {"cluster": "eu", "team": "search"}),
    "empty metadata is none": ({"x-team": ""}, NO_BODY, {"cluster": "eu", "team": "none"}),
    "binary metadata is none": ({"x-team": b"\xff"}, NO_BODY, {"cluster": "eu", "team": "none"}),
    "long metadata is cut": ({"x-team": "x" * 300}, NO_BODY, {"cluster": "eu", "team": "x" * 256}),
    "the caller's name": ({}, Caller("a", "name a"), {"cluster": "eu", "team": "none", "who": "a"}),
}


@pytest.mark.parametrize(("metadata", "caller", "expected"), TAG_CASES.values(), ids=TAG_CASES)
def test_tags_are_fixed_from_metadata_and_of_the_caller(metadata, caller, expected):
    assert collect_tags(TAGS, metadata, caller) == expected
