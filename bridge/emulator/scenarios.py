"""The scenarios as a table: a name, its help, its parameters with their defaults, and how the answer is sent.

A request asks for one by its model, `scenario::NAME?key=value&key=value`. Names, parameters and what they send on the
wire are kept from version to version: tests, examples and documents in all languages build on them.
"""

import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bridge.emulator import faults, oddities
from bridge.emulator.answers import DONE, Call
from bridge.emulator.steps import Step

__all__ = ["SCENARIOS", "Scenario", "parse_scenario"]

NUMBER_MAX = 256 * 1024 * 1024
"""The largest size or count."""

_ARGUMENTS = {"bytes": "bytes_", "type": "type_"}
"""Parameters whose argument has an underscore, so that it shadows no builtin."""


_Params = Mapping[str, int | float | str]


@dataclass(frozen=True)
class Scenario:
    """One way to answer: its help, how it is sent, and its parameters with their defaults, which give the types too."""

    help: str
    send: Callable[..., Iterator[Step]]
    params: _Params = field(default_factory=dict)
    streams_only: bool = False
    """Whether a unary call gets the ordinary answer."""

    def run(self, call: Call, values: Mapping[str, Any]) -> Iterator[Step]:
        """Return the steps of the answer to a call."""
        if self.streams_only and not call.stream:
            return call.send()
        return self.send(call, **{_ARGUMENTS.get(name, name): value for name, value in values.items()})


_ERROR: _Params = {
    "status": 500,
    "envelope": "full",
    "message": "the provider failed",
    "type": "",
    "code": "",
    "param": "",
    "retry_after": "",
    "retry_after_ms": "",
    "retry_date_s": -1,
    "size": 0,
    "raw": 0,
}
_RATE_LIMITED: _Params = {
    "status": 429,
    "message": "rate limit exceeded",
    "code": "rate_limit_exceeded",
    "retry_after": "1",
}
_OVERLOADED: _Params = {"status": 503, "message": "the gateway is overloaded", "retry_after": "1"}
_PROVIDER_FAILED: _Params = {
    "status": 502,
    "envelope": "bare",
    "message": "All variants failed with errors: v1: All model providers failed to infer with errors: emulator: "
    "Error 429 Too Many Requests from openai client: slow down",
}
_ERROR_EVENT: _Params = {
    "after": 2,
    "message": "the provider failed in mid-stream",
    "status": 0,
    "type": "",
    "code": "",
    "named": 0,
    "flat": 0,
    "raw": 0,
}

SCENARIOS: Mapping[str, Scenario] = {
    "plain": Scenario("The ordinary answer.", Call.send),
    "mirror": Scenario("An answer whose content is the request's body, as it came over the wire.", oddities.mirror),
    "slow": Scenario(
        "Wait delay_s before the headers and chunk_delay_s before each later event.",
        oddities.delay,
        {"delay_s": 0.5, "chunk_delay_s": 0.0},
    ),
    "stall": Scenario(
        "Fall silent for ever after so many events; after=0 sends headers alone, headers=0 nothing.",
        faults.stall,
        {"after": 2, "headers": 1},
    ),
    "split": Scenario(
        "Write the body in pieces of size bytes, each its own HTTP chunk and TCP segment.",
        oddities.split,
        {"size": 1, "delay_s": 0.0},
    ),
    "cut": Scenario(
        "End the body properly after so many events, without finish_reason and [DONE].",
        Call.send_beginning,
        {"after": 2},
    ),
    "reset": Scenario(
        "Reset the connection (RST) after so many events; after=-1 before the headers.",
        lambda call, after: faults.break_off(call, after=after, reset=True),
        {"after": 2},
    ),
    "half_chunk": Scenario(
        "Close the connection in the middle of an HTTP chunk, after so many events.",
        faults.break_http_chunk,
        {"after": 2},
    ),
    "close": Scenario(
        "Close the connection without an answer, or after so many events, without the last HTTP chunk.",
        lambda call, after: faults.break_off(call, after=after, reset=False),
        {"after": -1},
    ),
    "no_finish": Scenario(
        "finish_reason is null to the end, then [DONE]: TensorZero after the loss of its provider.",
        faults.omit_finish_reason,
    ),
    "no_done": Scenario(
        "The stream finishes, and the body ends without [DONE].",
        lambda call: call.send_events(call.split_body()[:-1]),
        streams_only=True,
    ),
    "done_only": Scenario(
        "A stream of [DONE] and nothing else.", lambda call: call.send_events([DONE]), streams_only=True
    ),
    "garbage": Scenario(
        "An event that is not JSON after so many events; a body that is not JSON.",
        faults.insert_garbage,
        {"after": 2},
    ),
    "error_event": Scenario(
        "An error event after so many events, then the rest; named=1 `event: error`, flat=1 text, raw=1 raw chunk.",
        faults.insert_error,
        _ERROR_EVENT,
    ),
    "error": Scenario(
        "An error status; envelope=full, bare, flat, detail, message, none, html, empty; size bytes of Chinese; raw=1.",
        faults.fail,
        _ERROR,
    ),
    "http_error": Scenario("As `error`.", faults.fail, _ERROR),
    "rate_limited": Scenario("429 with Retry-After.", faults.fail, {**_ERROR, **_RATE_LIMITED}),
    "overloaded": Scenario("503 with Retry-After.", faults.fail, {**_ERROR, **_OVERLOADED}),
    "provider_failed": Scenario("502 in TensorZero's words.", faults.fail, {**_ERROR, **_PROVIDER_FAILED}),
    "flaky": Scenario(
        "The same body is refused so many times in a row with the status, then answered; and so on from the start.",
        faults.fail_at_first,
        {"times": 1, "status": 503, "retry_after_ms": ""},
    ),
    "comments": Scenario(
        "Keep-alive comments before the first event and between events: count of them, every so many seconds.",
        oddities.insert_comments,
        {"every": 0.01, "count": 2},
        streams_only=True,
    ),
    "huge_event": Scenario(
        "One delta, or the message, with a content of size bytes.", oddities.enlarge, {"size": 1_000_000}
    ),
    "big": Scenario("A unary answer of size bytes.", oddities.enlarge, {"size": 10_000_000}),
    "many": Scenario(
        "A stream of so many chunks with so many bytes of content, as fast as the peer reads.",
        oddities.repeat,
        {"chunks": 10_000, "bytes": 100},
        streams_only=True,
    ),
    "pace": Scenario(
        "A chunk every interval_ms by the clock, without drift; its content is `DUE SENT`, both time.monotonic_ns().",
        oddities.pace,
        {"chunks": 50, "interval_ms": 10.0},
        streams_only=True,
    ),
    "crlf": Scenario(
        "Events with CRLF line ends.",
        lambda call: call.send_recoded(lambda event: event.replace(b"\n", b"\r\n")),
        streams_only=True,
    ),
    "cr": Scenario(
        "Events with CR line ends.",
        lambda call: call.send_recoded(lambda event: event.replace(b"\n", b"\r")),
        streams_only=True,
    ),
    "bom": Scenario("A byte order mark before the first event.", oddities.begin_with_bom, streams_only=True),
    "multiline": Scenario(
        "Each event's JSON on many `data:` lines, without a space after the colon.",
        oddities.split_data_lines,
        streams_only=True,
    ),
    "usage_chunk": Scenario(
        "Usage on a chunk of its own with no choices, as OpenAI and older gateways send it.",
        oddities.separate_usage,
        streams_only=True,
    ),
    "reasoning": Scenario(
        "Reasoning before the answer, in delta and message under the key.",
        oddities.insert_reasoning,
        {"key": "reasoning_content", "text": "Let me think about it."},
    ),
    "logprobs": Scenario("Log probabilities in every choice with content.", oddities.add_logprobs),
    "unknown_fields": Scenario(
        "Keys that nobody models at every level, with numbers whose spelling matters.", oddities.add_unknown_fields
    ),
    "misfit": Scenario(
        "Values of a wrong type in modelled keys; content and finish_reason stay good.", oddities.mistype_values
    ),
    "surrogate": Scenario(
        "An emoji cut in two inside its escape: a lone surrogate in each of two deltas.", oddities.cut_surrogates
    ),
    "two_choices": Scenario("A second choice beside the first, in every chunk.", oddities.double_choices),
    "not_json": Scenario("200 with an HTML page.", faults.send_page, {"status": 200}),
    "wrong_type": Scenario(
        "200 application/json though a stream was asked for; in_200=1 has an error in it.",
        faults.send_unary,
        {"in_200": 0},
    ),
    "not_object": Scenario("JSON that is no object: the body, or an event.", faults.send_array),
    "no_choices": Scenario("Objects without `choices`.", faults.drop_choices),
    "redirect": Scenario(
        "A redirect; following it shows as an exchange with another path.",
        faults.redirect,
        {"status": 307, "location": "/elsewhere"},
    ),
    "gzip": Scenario(
        "A body in gzip though nobody asked; bomb=1 makes 200 MB of zeros out of it.", oddities.compress, {"bomb": 0}
    ),
    "header_flood": Scenario(
        "So many headers of so many bytes before the ordinary answer; count=1 makes one long header.",
        oddities.flood_headers,
        {"count": 200, "size": 100},
    ),
    "refuse": Scenario(
        "This answer is ordinary; the next so many connections are reset as soon as they open.",
        faults.reset_next,
        {"connects": 1},
    ),
}


def parse_scenario(text: str) -> tuple[str, dict[str, Any]]:
    """Return the name and all values in `NAME?key=value&key=value`; ValueError says what is wrong with it."""
    name, _, query = text.partition("?")
    if name not in SCENARIOS:
        raise ValueError(f"scenario: expected one of {', '.join(sorted(SCENARIOS))}, found `{name[:64]}`")
    params = SCENARIOS[name].params
    values: dict[str, Any] = dict(params)
    for key, value in urllib.parse.parse_qsl(query, keep_blank_values=True):
        if key not in values:
            raise ValueError(f"scenario {name}: expected a parameter among {', '.join(values)}, found `{key[:64]}`")
        try:
            values[key] = type(params[key])(value)
        except ValueError as error:
            raise ValueError(f"scenario {name}: {key}: expected a number, found `{value[:64]}`") from error
        if not isinstance(values[key], str) and not -1 <= values[key] <= NUMBER_MAX:
            raise ValueError(f"scenario {name}: {key}: expected -1 to {NUMBER_MAX}, found {value[:64]}")
    return name, values
