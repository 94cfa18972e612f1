"""The required end of each call: tables, by docs/behavior.md and docs/operations.md, not by what the bridge does."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from tests.kit.status_table import ENVELOPED, WITHOUT_ENVELOPE

__all__ = [
    "ALONE",
    "BODY_BYTES_MAX",
    "CALL_S",
    "CHUNKS",
    "DEADLINES",
    "DEADLINE_S",
    "FAR_S",
    "IDLE_S",
    "INCOMPLETE",
    "INVALID",
    "KEPT_S",
    "LOST",
    "OWN",
    "PLACES",
    "REPLY",
    "ROWS",
    "SETTINGS",
    "STALLED",
    "WHOLE",
    "WORDS",
    "End",
    "Row",
]

IDLE_S, CALL_S, DEADLINE_S = 1.0, 6.0, 0.5
"""The bridge's own limits, and the deadline of a caller whose deadline comes first."""
FAR_S = 20.0
"""A deadline that never comes."""
KEPT_S = 1.0
BODY_BYTES_MAX, EVENT_BYTES_MAX = 4 * 1024 * 1024, 1024 * 1024
SETTINGS = {
    "call_timeout_s": CALL_S,
    "upstream__idle_timeout_s": IDLE_S,
    "upstream__first_chunk_timeout_s": IDLE_S,
    "upstream__response_bytes_max": BODY_BYTES_MAX,
    "upstream__event_bytes_max": EVENT_BYTES_MAX,
}
DEADLINES = {"no deadline": None, "a deadline": DEADLINE_S}
PLACES = {"before the headers": -1, "before the first chunk": 0, "at the first chunk": 1, "after the first chunk": 3}
"""By the number of events, or slices of a body, that were sent before the fault."""


# The required ends


@dataclass(frozen=True)
class End:
    """The end of a call; a failure's details are ErrorInfo, RequestInfo and those in `details`.

    `chunks` were delivered before a failure. `status` is the HTTP status in UpstreamError; None if nothing
    promises one. `waits_s` is how long the bridge waits before it gives up.
    """

    code: str = "OK"
    reason: str = ""
    text: str = ""
    chunks: int = 0
    status: int | None = None
    details: frozenset[str] = frozenset()
    retry_ms: int | None = None
    waits_s: float | None = None

    def __str__(self) -> str:
        return f"{self.code} {self.reason}".rstrip()


class Row(NamedTuple):
    """A fault, its place, and the ends of both methods; `is_closing`: the upstream itself closes the connection."""

    scenario: str
    unary: End
    stream: End
    place: str = ""
    is_closing: bool = False


WORDS = "one two {id}"
REPLY = "You said: one two {id}"
CHUNKS = 7  # the role, five words and the end
WHOLE = End(text=REPLY)
LOST = End("ABORTED", "UPSTREAM_DISCONNECTED")
INVALID = End("INTERNAL", "INVALID_UPSTREAM_RESPONSE", status=200)
INCOMPLETE = End("ABORTED", "INCOMPLETE_COMPLETION", status=200)
BROKEN = End("INTERNAL", "UPSTREAM_STREAM_ERROR", status=200)
LARGE = End("INTERNAL", "UPSTREAM_RESPONSE_TOO_LARGE", status=200)
LARGE_BODY = replace(LARGE, status=None)
STALLED = End("DEADLINE_EXCEEDED", "UPSTREAM_TIMEOUT", waits_s=IDLE_S)

OWN = {
    "UPSTREAM_UNREACHABLE",
    "UPSTREAM_DISCONNECTED",
    "UPSTREAM_TIMEOUT",
    "INCOMPLETE_COMPLETION",
    "INVALID_UPSTREAM_RESPONSE",
    "UPSTREAM_RESPONSE_TOO_LARGE",
}
"""Reasons of the bridge's own; the others are the upstream's."""

HARMLESS = {
    "plain": WHOLE,
    "slow?delay_s=0.1&chunk_delay_s=0.01": WHOLE,
    "split?size=7": WHOLE,
    "no_done": WHOLE,
    "comments?every=0.15&count=2": WHOLE,  # longer than the idle timeout in all, but never without data for as long
    "huge_event?size=200000": WHOLE,
    "big?size=2000000": WHOLE,
    "many?chunks=1000&bytes=50": WHOLE,
    "pace?chunks=10&interval_ms=5": WHOLE,
    "crlf": WHOLE,
    "cr": WHOLE,
    "bom": WHOLE,
    "multiline": WHOLE,
    "usage_chunk": WHOLE,
    "reasoning": WHOLE,
    "logprobs": WHOLE,
    "unknown_fields": WHOLE,
    "misfit": WHOLE,
    "surrogate": WHOLE,
    "two_choices": WHOLE,
    "mirror": WHOLE,
    "gzip": WHOLE,
    "header_flood?count=40&size=100": WHOLE,
}
_TEXTS: dict[str, tuple[str, str]] = {  # if the answer is another one: unary and streamed
    "huge_event": ("x" * 200_000, "x" * 200_000 + REPLY),
    "big": ("x" * 2_000_000, ""),
    "many": (REPLY, "x" * 50_000),
    "pace": (REPLY, ""),
    "mirror": ("", ""),
    "surrogate": ("cut \ufffd", "cut \ufffd\ufffd whole" + REPLY),
}
"""An empty text is not compared: it can't be known before."""


def _list_harmless() -> Iterator[Row]:
    for text, end in HARMLESS.items():
        unary, stream = _TEXTS.get(text.partition("?")[0], (REPLY, REPLY))
        large = text.startswith("big")  # more than an event may have
        yield Row(text, replace(end, text=unary), LARGE if large else replace(end, text=stream))


def _list_broken_off() -> Iterator[Row]:
    for place, after in PLACES.items():
        lost_in_body = replace(LOST, chunks=after, status=200) if after >= 0 else LOST
        for name in ("reset", "close"):
            yield Row(f"{name}?after={after}", LOST, lost_in_body, place, is_closing=True)
        if after < 0:
            yield Row("stall?headers=0", replace(STALLED, waits_s=CALL_S), STALLED, place)
            continue
        yield Row(f"half_chunk?after={after}", LOST, lost_in_body, place, is_closing=True)
        yield Row(f"stall?after={after}", STALLED, replace(STALLED, chunks=after, status=200), place)
        yield Row(f"cut?after={after}", INVALID, replace(INCOMPLETE, chunks=after), place)
        yield Row(f"garbage?after={after}", INVALID, replace(INVALID, chunks=after), place)
        yield from _list_error_events(place, after)


def _list_error_events(place: str, after: int) -> Iterator[Row]:
    broken = replace(BROKEN, chunks=after)
    for query in ("", "&flat=1", "&raw=1", "&named=1", "&code=no_known_word"):
        yield Row(f"error_event?after={after}{query}", BROKEN, broken, place)
    for query, code, detail in (
        ("status=429", "RESOURCE_EXHAUSTED", ""),
        ("code=insufficient_quota", "RESOURCE_EXHAUSTED", "QuotaFailure"),
        ("type=invalid_request_error", "INVALID_ARGUMENT", ""),
        ("code=504", "DEADLINE_EXCEEDED", ""),
        ("type=overloaded_error", "UNAVAILABLE", ""),
    ):
        end = replace(BROKEN, code=code, details=frozenset({detail} - {""}))
        delivered = replace(end, chunks=after)
        if after and code == "UNAVAILABLE":  # reserved for calls that generated nothing
            delivered = replace(delivered, code="ABORTED")
        yield Row(f"error_event?after={after}&{query}", end, delivered, place)


def _list_answers() -> Iterator[Row]:
    """Yield the faults that are a whole answer, of which no chunk is delivered, or all are."""
    place = "before the first chunk"
    for row in (*ENVELOPED, *WITHOUT_ENVELOPE):
        code, reason = row.verdict
        details = frozenset({"ResourceInfo"}) if code == "NOT_FOUND" else frozenset()
        end = End(code, reason, status=row.status, details=details)
        yield Row(f"error?status={row.status}&envelope={row.form}&type=odd_type", end, end, place)
    for name, end in {
        "http_error?status=507": End("INTERNAL", "UPSTREAM_INTERNAL", status=507),
        "rate_limited": End("RESOURCE_EXHAUSTED", "UPSTREAM_RATE_LIMITED", status=429, retry_ms=1000),
        "overloaded": End("UNAVAILABLE", "UPSTREAM_UNAVAILABLE", status=503, retry_ms=1000),
        "flaky?retry_after_ms=200": End("UNAVAILABLE", "UPSTREAM_UNAVAILABLE", status=503, retry_ms=200),
        "provider_failed": End("UNAVAILABLE", "UPSTREAM_PROVIDER_FAILED", status=502),
        "error?status=429&retry_after_ms=1500": End(
            "RESOURCE_EXHAUSTED", "UPSTREAM_RATE_LIMITED", status=429, retry_ms=1500
        ),
        "error?status=503&retry_after=90": End("UNAVAILABLE", "UPSTREAM_UNAVAILABLE", status=503, retry_ms=90_000),
        "error?status=400&param=messages[0]": End(
            "INVALID_ARGUMENT", "UPSTREAM_INVALID_REQUEST", status=400, details=frozenset({"BadRequest"})
        ),
        "error?status=429&code=insufficient_quota": End(
            "RESOURCE_EXHAUSTED", "UPSTREAM_RATE_LIMITED", status=429, details=frozenset({"QuotaFailure"})
        ),
        "not_json": INVALID,
        "not_object": INVALID,
        "redirect": replace(INVALID, status=307),
        "redirect?status=302&location=/v1/chat/completions": replace(INVALID, status=302),
        "header_flood?count=1&size=70000": INVALID,
    }.items():
        yield Row(name, end, end, place)
    yield Row("wrong_type", WHOLE, INVALID, place)
    yield Row("wrong_type?in_200=1", BROKEN, BROKEN, place)
    yield Row("done_only", WHOLE, INCOMPLETE, place)
    yield Row("huge_event?size=2000000", replace(WHOLE, text=""), LARGE, place)
    yield Row("big?size=6000000", LARGE_BODY, LARGE, place)
    yield Row("gzip?bomb=1", LARGE_BODY, LARGE, place)
    place = "after all chunks"
    yield Row("no_finish", INCOMPLETE, replace(INCOMPLETE, chunks=CHUNKS), place)
    # The last has usage alone, which a caller that did not ask does not see.
    yield Row("no_choices", INVALID, replace(INCOMPLETE, chunks=CHUNKS - 1), place)


ROWS = (*_list_harmless(), *_list_broken_off(), *_list_answers())
ALONE = frozenset({"refuse"})
"""Faults that would affect other calls too."""
