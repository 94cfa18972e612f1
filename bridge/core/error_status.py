"""Which HTTP status, which wait and which place an error's own words name.

An error inside a 200 has no status line; its code or a word of it stands for one. Numbers count before words, and the
innermost object before those around it. Words are those of OpenAI, Anthropic and google.rpc, in any spelling of their
capitals; an unknown word names nothing.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

__all__ = ["QUOTA_WORD", "RETRY_MS_MAX", "find_retry_ms", "find_status", "is_missing_route"]

QUOTA_WORD: Final = "insufficient_quota"
"""OpenAI's word for a quota that is used up, as an error's type or code."""
RETRY_MS_MAX: Final = 365 * 24 * 3600 * 1000
"""Longest wait that is believed."""

_STATUS_KEYS: Final = (
    *("code", "type", "status", "status_code", "statusCode", "error_code", "errorCode", "error_type", "errorType"),
    *("http_status", "httpStatus", "http_code"),
)

# Without a last `_error` or `_exception`, which each may have.
_WORDS: Final[Mapping[int, tuple[str, ...]]] = {
    400: (
        *("invalid_request", "bad_request", "invalid_argument", "out_of_range", "validation", "invalid_parameter"),
        *("context_length_exceeded", "exceed_context_size", "content_policy_violation", "content_filter"),
    ),
    401: ("authentication", "unauthenticated", "unauthorized", "invalid_api_key", "invalid_authentication"),
    402: ("billing", "payment_required", "insufficient_balance", "insufficient_credits"),
    403: ("permission", "permission_denied", "forbidden", "access_denied"),
    404: ("not_found", "model_not_found"),
    409: ("aborted", "already_exists", "conflict"),
    412: ("failed_precondition",),
    413: ("request_too_large",),
    429: (
        *("rate_limit", "rate_limit_exceeded", "rate_limited", "ratelimit", "too_many_requests", "resource_exhausted"),
        *(QUOTA_WORD, "quota_exceeded", "exceeded_current_quota"),
    ),
    499: ("cancelled", "canceled"),
    500: ("api", "internal", "internal_server", "server", "data_loss"),
    501: ("unimplemented", "not_implemented"),
    502: ("bad_gateway",),
    503: ("engine_overloaded", "overloaded", "service_unavailable", "unavailable"),
    504: ("timeout", "deadline_exceeded", "gateway_timeout", "request_timeout"),
}
_STATUS_BY_WORD: Final = {word: status for status, words in _WORDS.items() for word in words}
_NUMBER: Final = re.compile(r"([45][0-9][0-9])(?:\.0+)?", re.ASCII)


def find_status(layers: Iterable[Mapping[str, Any]]) -> int | None:
    """Return the HTTP status that an error names, by a number or by a known word. `layers` as in Envelope."""
    values = [layer[key] for layer in layers for key in _STATUS_KEYS if key in layer]
    texts = [str(value).strip() for value in values if type(value) in {str, int, float}]
    for text in texts:
        if number := _NUMBER.fullmatch(text):
            return int(number[1])
    return next((status for text in texts if (status := _STATUS_BY_WORD.get(_normalize(text)))), None)


def _normalize(word: str) -> str:
    """Return a word in lower case with underscores, without `_error` at its end: RateLimitError is rate_limit."""
    if len(word) > 64:
        return word
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[\s.\-]+", "_", word).lower()
    return re.sub(r"_?(?:error|exception)$", "", snake)


def find_retry_ms(layers: Iterable[Mapping[str, Any]]) -> int | None:
    """Return the wait of a google.rpc.RetryInfo in an error's details, in milliseconds, or None if there is none."""
    for layer in layers:
        details = layer.get("details")
        for detail in details if type(details) is list else ():
            if type(detail) is dict and str(detail.get("@type")).endswith("google.rpc.RetryInfo"):
                return _parse_duration(detail.get("retryDelay", detail.get("retry_delay")))
    return None


def _parse_duration(value: Any) -> int | None:
    """Return a google.protobuf.Duration in milliseconds: `39.5s`, or an object of seconds and nanos."""
    if type(value) is str and (found := re.fullmatch(r"(\d+(?:\.\d*)?)s", value, re.ASCII)):
        return math.ceil(min(float(found[1]) * 1000, RETRY_MS_MAX))
    if type(value) is dict:
        seconds, nanos = (str(value.get(key) or 0) for key in ("seconds", "nanos"))
        if all(re.fullmatch(r"\d{1,12}", part, re.ASCII) for part in (seconds, nanos)):
            return min(int(seconds) * 1000 + math.ceil(int(nanos) / 1_000_000), RETRY_MS_MAX)
    return None


# Frameworks' words for a path that they do not serve: FastAPI, Starlette, Flask, Django, Rails, Spring, Nest, Express,
# Fastify, Laravel, ASP.NET, gin, echo, Fiber, Kong, APISIX, AWS, Azure, Cloudflare, OpenAI, LM Studio, …
_NOTHING_NAMED: Final = re.compile(
    r"(?:http )?(?:error )?(?:404[ :.,\-]*)?(?:error[ :.,\-]*)?"
    r"(?:(?:the |this )?(?:requested )?(?:page|resource|route|url|uri|path|api|http resource|file)s? )?"
    r"(?:(?:was |is |could |can )?not (?:be )?found|does not exist|no message available|nothing matches the given uri)"
    r"(?: on (?:this|the) server)?\W*(?:404\W*|if you entered the url.{0,160})?",
    re.IGNORECASE | re.DOTALL,
)
_PATH_NAMED: Final = re.compile(
    r"chat/completions|\b(?:POST|GET)[ :]+/|no route matched|\broute\b.{0,200}\bnot (?:be )?found"
    r"|unknown (?:route|path)|could not route to|(?:invalid|unknown(?: request)?) url|no static resource"
    r"|no handler found",
    re.IGNORECASE | re.DOTALL,
)
_NAMED: Final = re.compile(r"model|deployment|function|variant", re.IGNORECASE)
_PATH: Final = re.compile(r"/\S*")


def is_missing_route(words: str, *, is_bare: bool) -> bool:
    """Return whether the words of a 404 say that the path is not served, and not that a model is missing.

    `is_bare`: they stand in no error object of an API, which may well say "Not Found" of a model.
    """
    start = words[:1000].strip()
    if _NAMED.search(_PATH.sub("", start)):  # such as "this is not a chat model and not supported in chat/completions"
        return False
    return bool(_PATH_NAMED.search(start)) or (is_bare and bool(_NOTHING_NAMED.fullmatch(start) or not start))
