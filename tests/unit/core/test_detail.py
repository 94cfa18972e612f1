"""Tests of bridge/core/detail.py: the log's words on a failure are the bridge's own, and never the gateway's."""

import pytest

from bridge.core.detail import find_detail
from bridge.core.errors import Asked, BridgeError, Code
from bridge.core.http_errors import error_from_response
from bridge.core.reasons import REASONS, UPSTREAM_DOMAIN
from ollmbridge.v1 import error_details_pb2 as pb

CONTENT = "content of the gateway"


def make(reason: int, message: str, **fields) -> BridgeError:
    return BridgeError(Code.INTERNAL, reason, message, **fields)


OWN = {
    "unreachable": (pb.ERROR_REASON_UPSTREAM_UNREACHABLE, "can't connect to the gateway: connection refused"),
    "a timeout": (pb.ERROR_REASON_UPSTREAM_TIMEOUT, "no first chunk from the gateway for 3 s (upstream.x)"),
    "denied": (pb.ERROR_REASON_CALLER_DENIED, "the identity a.test of the caller's certificate is not in the list"),
}


@pytest.mark.parametrize(("reason", "message"), OWN.values(), ids=OWN)
def test_message_of_the_bridges_own_is_the_detail(reason, message):
    assert find_detail(make(reason, message)) == message


@pytest.mark.parametrize("reason", [number for number, row in REASONS.items() if row.domain == UPSTREAM_DOMAIN])
def test_failure_that_the_gateway_reports_has_none(reason):
    assert find_detail(make(reason, CONTENT)) == ""


@pytest.mark.parametrize("body", [f'{{"error":{{"message":"{CONTENT}"}}}}', CONTENT, f"<p>{CONTENT}", f'"{CONTENT}"'])
@pytest.mark.parametrize("status", [200, 301, 400, 401, 404, 405, 406, 411, 431, 500])
@pytest.mark.parametrize("own_key", [False, True])
@pytest.mark.parametrize("kind", ["text/html", "text/plain", "application/json", f"{CONTENT}/x", ""])
def test_no_word_of_a_gateway_is_in_it(body, status, own_key, kind):
    failure = error_from_response(status, body.encode(), content_type=kind, asked=Asked(own_key=own_key))
    assert "content" not in find_detail(failure)


def test_words_before_the_gateways_own_are_kept():
    message = f"the upstream refused the bridge's own key (HTTP 401): {CONTENT}"
    found = find_detail(make(pb.ERROR_REASON_CREDENTIALS_REJECTED, message))
    assert found == "the upstream refused the bridge's own key (HTTP 401)"


def test_message_that_is_all_of_the_gateways_is_replaced():
    upstream = pb.UpstreamError(http_status=405, message=CONTENT)
    failure = make(pb.ERROR_REASON_INVALID_UPSTREAM_RESPONSE, CONTENT, upstream=upstream)
    assert find_detail(failure) == "the gateway answered HTTP 405"


def test_detail_is_redacted_and_bounded():
    found = find_detail(make(pb.ERROR_REASON_OVERLOADED, f"sk-{'a' * 24} " + "x" * 1000))
    assert "a" * 24 not in found
    assert len(found) == 300
    assert found.endswith("…")
