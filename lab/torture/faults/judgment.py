"""The judgment of one call by its required end: code, reason, details, chunks and time."""

from typing import Any

from lab.torture.faults.required import OWN, End
from tests.kit.client import Answer

__all__ = ["ENDS_MAX", "LATE_S_MAX", "judge"]

LATE_S_MAX = 1.0
ENDS_MAX = 4


def judge(answer: Answer, must: End, name: str, took_s: float, *, stream: bool) -> str:
    """Return what is wrong with an answer; "" if nothing is."""
    if must.waits_s is not None and not must.waits_s * 0.9 <= took_s <= must.waits_s + LATE_S_MAX:
        return f"it ended after {took_s:.2f} s instead of {must.waits_s:g} s"
    if answer.failure is None:
        expected = must.text.format(id=name)
        if must.code != "OK":
            return f"OK instead of {must}"
        return "" if not expected or answer.text == expected else f"another text than {expected[:80]!r}"
    failed = answer.failure
    found = End(failed.code, failed.details["ErrorInfo"].reason if "ErrorInfo" in failed.details else "")
    if str(found) != str(must):
        return f"{found} instead of {must}: {failed.message[:120]}"
    if len(answer.messages) != must.chunks * stream:
        return f"{len(answer.messages)} chunks before it instead of {must.chunks}"
    return judge_details(answer, must, name) if must.reason else ""


def judge_details(answer: Answer, must: End, name: str) -> str:
    failed = answer.failure
    expected = {"ErrorInfo", "RequestInfo", *must.details}
    expected |= {"UpstreamError"} if must.status is not None else failed.details.keys() & {"UpstreamError"}
    expected |= {"RetryInfo"} if must.retry_ms is not None else set()
    if failed.details.keys() != expected:
        return f"expected the details {sorted(expected)}, found {sorted(failed.details)}"
    domain = "ollmbridge" if must.reason in OWN else "upstream.ollmbridge"
    facts: list[tuple[str, Any, Any]] = [
        ("domain", failed.info.domain, domain),
        ("request id", failed.details["RequestInfo"].request_id, name),
        ("a message", bool(failed.message), True),
    ]
    if must.status is not None:
        facts += [
            ("httpStatus", failed.info.metadata["httpStatus"], str(must.status)),
            ("http_status", failed.upstream.http_status, must.status),
            ("chunks_delivered", failed.upstream.chunks_delivered, len(answer.messages)),
        ]
    if must.retry_ms is not None:
        repeatable = must.code in {"UNAVAILABLE", "RESOURCE_EXHAUSTED"}
        pushback = str(must.retry_ms if must.retry_ms <= 60_000 else -1) if repeatable else None
        facts += [
            ("RetryInfo, ms", failed.details["RetryInfo"].retry_delay.ToMilliseconds(), must.retry_ms),
            ("grpc-retry-pushback-ms", failed.trailers.get("grpc-retry-pushback-ms"), pushback),
        ]
    return next((f"{what}: {found!r} instead of {good!r}" for what, found, good in facts if found != good), "")
