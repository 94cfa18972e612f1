"""A call's failure, from where it is raised to the status that it becomes.

A BridgeError is raised anywhere and is not changed afterwards. Its code says whether a caller may retry: UNAVAILABLE is
kept for failures in which nothing was generated, since meshes and clients retry it blindly; if a completion may have
run and been billed the code is ABORTED, and the caller decides. Which code a reason has is in `reasons.py`, how an
upstream's answer becomes an error in `http_errors.py`, and how an error becomes a status in `status.py`.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from ollmbridge.v1 import error_details_pb2 as details_pb2
from ollmbridge.v1.chat_pb2 import Usage
from ollmbridge.v1.error_details_pb2 import ErrorReason, UpstreamError

__all__ = [
    "NOTHING_ASKED",
    "Asked",
    "BridgeError",
    "Code",
    "Resource",
    "Violation",
    "invalid_request",
    "too_large_error",
]

VIOLATIONS_MAX: Final = 100
"""Of a request, that its status has: a person reads the first few."""


class Code(enum.IntEnum):
    """The gRPC codes that the bridge sends, with their numbers in google.rpc.Code."""

    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class Violation(NamedTuple):
    """One thing that is wrong with a request: the proto path of the field, and what was expected and found there."""

    field: str
    description: str


class Resource(NamedTuple):
    """What a request selects: the type "model", "function" or "variant", and the name."""

    type: str
    name: str


class Asked(NamedTuple):
    """What a call asked for, and whether the key that went with it was the bridge's own.

    Both decide what an upstream's refusal means: which resource was not found, and who can fix a rejected key.
    """

    resource: Resource | None = None
    own_key: bool = False


NOTHING_ASKED: Final = Asked()


@dataclass(eq=False)
class BridgeError(Exception):
    """A call's failure: all that its status will say.

    `message` says what happened, or repeats the upstream. `reason` is a number of ErrorReason. Times are in
    milliseconds.
    """

    code: Code
    reason: "ErrorReason.ValueType"
    message: str
    upstream: UpstreamError | None = None
    retry_after_ms: int | None = None
    violations: Sequence[Violation] = ()
    resource: Resource | None = None

    def __str__(self) -> str:
        """Return the code, the reason and the message."""
        return f"{self.code.name} {self.reason_name}: {self.message}"

    @property
    def reason_name(self) -> str:
        """The reason as ErrorInfo has it, without the enum's prefix."""
        return ErrorReason.Name(self.reason).removeprefix("ERROR_REASON_")

    def with_progress(
        self, *, http_status: int, chunks: int, usage: Usage | None, has_generated: bool = False
    ) -> "BridgeError":
        """Return a copy, with the same cause and traceback, that says how far a completion came.

        `http_status` is for an error that no answer of the upstream caused. If something was generated, as after a
        chunk, the copy is never UNAVAILABLE.
        """
        upstream = UpstreamError(http_status=http_status)
        if self.upstream is not None:
            upstream.CopyFrom(self.upstream)
        upstream.chunks_delivered = chunks
        if usage is not None:
            upstream.partial_usage.CopyFrom(usage)
        code = Code.ABORTED if (chunks or has_generated) and self.code is Code.UNAVAILABLE else self.code
        copy = replace(self, code=code, upstream=upstream)
        copy.__cause__ = self.__cause__
        copy.__suppress_context__ = self.__suppress_context__
        return copy.with_traceback(self.__traceback__)


def invalid_request(violations: Sequence[Violation]) -> BridgeError:
    """Return the error of a request that breaks the contract's own rules, with the first VIOLATIONS_MAX violations."""
    first = f"{violations[0].field}: {violations[0].description}"
    others = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
    return BridgeError(
        Code.INVALID_ARGUMENT,
        details_pb2.ERROR_REASON_INVALID_REQUEST,
        first + others,
        violations=tuple(violations[:VIOLATIONS_MAX]),
    )


def too_large_error(message: str, http_status: int) -> BridgeError:
    """Return the error of an answer, or an event, beyond a limit on what is read of it."""
    too_large = details_pb2.ERROR_REASON_UPSTREAM_RESPONSE_TOO_LARGE
    return BridgeError(Code.INTERNAL, too_large, message, upstream=UpstreamError(http_status=http_status))
