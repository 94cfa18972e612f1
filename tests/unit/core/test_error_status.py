import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.core.error_status import RETRY_MS_MAX, find_retry_ms, find_status, is_missing_route


@pytest.mark.parametrize("key", ["code", "status", "status_code", "statusCode", "error_code", "http_status"])
@pytest.mark.parametrize("value", [429, "429", 429.0, "429.0", " 429 "])
def test_number_names_the_status_in_each_of_its_forms(key, value):
    assert find_status([{key: value, "type": "server_error"}]) == 429


@pytest.mark.parametrize(
    ("word", "status"),
    [
        *(("RESOURCE_EXHAUSTED", 429), ("UNAVAILABLE", 503), ("INVALID_ARGUMENT", 400), ("UNAUTHENTICATED", 401)),
        *(("PERMISSION_DENIED", 403), ("NOT_FOUND", 404), ("DEADLINE_EXCEEDED", 504), ("UNIMPLEMENTED", 501)),
        *(("ABORTED", 409), ("CANCELLED", 499), ("FAILED_PRECONDITION", 412), ("INTERNAL", 500)),
        *(("engine_overloaded", 503), ("engine_overloaded_error", 503), ("overloaded", 503), ("OverloadedError", 503)),
        *(
            ("RateLimitError", 429),
            ("BadRequestError", 400),
            ("rate-limit-exceeded", 429),
            ("InternalServerError", 500),
        ),
        *(("too many requests", 429), ("ServiceUnavailableException", 503), ("insufficient_quota", 429)),
        *(("new_word", None), ("", None), ("error", None), ("x" * 100_000, None)),
    ],
)
def test_known_word_names_the_status_however_it_is_spelled(word, status):
    for key in ("code", "type", "status"):
        assert find_status([{key: word}]) == status


@pytest.mark.parametrize(
    ("layers", "status"),
    [
        ([{"code": "rate_limit_exceeded"}, {"status": 503}], 503),
        ([{"code": 429}, {"status": 503}], 429),
        ([{}, {"status": 503}], 503),
        ([{"code": True, "type": [], "status": {}}], None),
        *(([{"code": value}], None) for value in (0, 200, 399, 600, 4290, 429.5, -429, "٤٢٩", "429x", 1e300)),
        ([], None),
    ],
)
def test_numbers_count_before_words_and_the_innermost_first(layers, status):
    assert find_status(layers) == status


INFO = "type.googleapis.com/google.rpc.RetryInfo"


@pytest.mark.parametrize(
    ("delay", "wait_ms"),
    [
        *(("39.5s", 39_500), ("7s", 7000), ("0s", 0), ("0.0001s", 1), ("9" * 40 + "s", RETRY_MS_MAX)),
        *(({"seconds": 3, "nanos": 500_000_001}, 3501), ({"seconds": "3"}, 3000), ({}, 0)),
        *((None, None), ("soon", None), ("-1s", None), ("1m", None), (5, None), ({"seconds": -1}, None)),
    ],
)
def test_retry_info_in_the_body_is_a_wait(delay, wait_ms):
    assert find_retry_ms([{}, {"details": [1, {"@type": "x"}, {"@type": INFO, "retryDelay": delay}]}]) == wait_ms


@pytest.mark.parametrize("details", [None, [], {}, [{}], [{"@type": None}], ["google.rpc.RetryInfo"]])
def test_details_without_retry_info_are_no_wait(details):
    assert find_retry_ms([{"details": details}]) is None


@pytest.mark.parametrize(
    "words",
    [
        *("Not Found", "not found.", "404 Not Found", "404: Not Found", "Page not found", "404 page not found"),
        *("Resource not found", "The requested resource was not found", "No message available"),
        "The requested URL was not found on the server. If you entered the URL manually please check your spelling.",
        "",
    ],
)
def test_words_that_name_nothing_say_that_the_route_is_missing_if_no_api_says_them(words):
    assert is_missing_route(words, is_bare=True)
    assert not is_missing_route(words, is_bare=False)


@pytest.mark.parametrize(
    "words",
    [
        *("404 Route Not Found", "Cannot POST /v1/chat/completions", "Route POST:/chat/completions not found"),
        *("Invalid URL (POST /v1/v1/chat/completions)", "Unknown request URL: POST /chat/completions. Please check"),
        *("no Route matched with those values", "No static resource v1/chat/completions.", "Route not found: POST /x"),
        *("The route v1/chat/completions could not be found.", "Unexpected endpoint or method. (POST /api/models)"),
        "Could not route to /client/v4/chat/completions, perhaps your object identifier is invalid?",
    ],
)
def test_words_that_name_the_path_say_that_the_route_is_missing(words):
    assert is_missing_route(words, is_bare=True)
    assert is_missing_route(words, is_bare=False)


@pytest.mark.parametrize(
    "words",
    [
        *("Model not found", "no such model", "The model `near` does not exist", "near not found", "Not Found: near"),
        *("no such endpoint", "Unknown function: f", "Unknown variant: v", "Deployment not found", "x" * 100_000),
        "This is not a chat model and thus not supported in the v1/chat/completions endpoint.",
    ],
)
def test_words_of_a_missing_model_are_no_missing_route(words):
    assert not is_missing_route(words, is_bare=True)


@given(st.text(max_size=60), st.booleans())
def test_any_words_are_judged(words, is_bare):
    assert isinstance(is_missing_route(words, is_bare=is_bare), bool)
