"""When a completion is whole: the one rule for unary answers and streams.

`[DONE]` is no proof of success, since gateways send it after a lost provider too. A completion is whole if at least one
choice came and every choice that came has its finish_reason: a text that is neither empty nor a word for nothing, and
that reports no failure. That no error came is for `envelope.py` to see.

Some servers send a finish_reason with each chunk. So text behind a choice's finish_reason opens the choice again: only
an explicit end makes the completion whole then, that is `[DONE]`, or the end of a body by its framing. Any other end
counts only if `is_whole`: a break, the end of the connection, the end of a grace. Before such text comes, only a choice
whose first chunk has a finish_reason hints at such a server.
"""

from collections.abc import Mapping
from typing import Any, Final

from bridge.core.errors import BridgeError, Code
from bridge.core.json_text import JsonTooLargeError
from ollmbridge.v1 import error_details_pb2 as details_pb2

__all__ = ["ChoicesError", "Completion", "check_count", "has_content"]

_CHOICES_MAX: Final = 1024
"""Choices of one completion that are tracked. The API has one; OpenAI's at most 128."""
_INDEX_CHARS_MAX: Final = 64
"""Of a choice's index that is no number: it is kept while the stream lasts."""
_NO_REASONS: Final = frozenset({"", "null", "none"})
_FAILURES: Final = frozenset(
    {"abort", "aborted", "canceled", "cancelled", "failed", "failure", "insufficient_system_resource"}
)
"""A finish_reason that reports a failure, besides those that end in `error`: `error`, `network_error`, …"""
_OPEN, _FINISHED, _FINISHED_AT_ONCE, _REOPENED = range(4)


class ChoicesError(ValueError):
    """The `choices` of an answer are no list of objects; the text says what they are."""


class Completion:
    """The choices that have come so far, by index, and whether each has finished."""

    __slots__ = ("_choices", "has_finished_choice")

    def __init__(self) -> None:
        self._choices: dict[int | str, int] = {}
        self.has_finished_choice = False

    @property
    def is_finished(self) -> bool:
        """Whether every choice has had its finish_reason: an explicit end makes the completion whole."""
        return bool(self._choices) and _OPEN not in self._choices.values()

    @property
    def is_whole(self) -> bool:
        """Whether every choice has had its finish_reason, and no text came behind it: any end leaves it whole."""
        return self.has_finished_choice and all(_OPEN < state < _REOPENED for state in self._choices.values())

    @property
    def may_go_on(self) -> bool:
        """Whether a choice had a finish_reason from its first chunk on, as if each chunk had one."""
        return _FINISHED_AT_ONCE in self._choices.values()

    def track(self, choices: Any) -> None:
        """Take the choices of an answer or of a chunk.

        Raises ChoicesError, and takes nothing, if they are no list of objects, and BridgeError for a finish_reason that
        reports a failure.
        """
        _check_shape(choices)
        for choice in choices:
            index = choice.get("index")
            if type(index) is not int:
                index = _read_index(index)
            state = self._choices.get(index)
            if state and has_content(choice):
                state = _REOPENED
            if (reason := choice.get("finish_reason")) and _is_reason(reason, index):
                self.has_finished_choice = True
                state = _FINISHED_AT_ONCE if state is None else max(state, _FINISHED)
            self._choices[index] = state or _OPEN
        if len(self._choices) > _CHOICES_MAX:
            message = f"the completion has more than {_CHOICES_MAX} choices"
            raise BridgeError(Code.INTERNAL, details_pb2.ERROR_REASON_INVALID_UPSTREAM_RESPONSE, message)

    def track_usage(self) -> None:
        """Take a chunk that has usage and no choices: no text comes behind it."""
        for index, state in self._choices.items():
            if state == _FINISHED_AT_ONCE:
                self._choices[index] = _FINISHED

    def build_incomplete_error(self, end: str) -> BridgeError:
        """Return the error of a completion that ended before it was whole. `end` says how it ended."""
        missing = "any choice came"
        for index, state in self._choices.items():
            if state == _OPEN:
                missing = f"choice {index} had a finish_reason"
                break
            if state == _REOPENED:
                missing = f"[DONE], and choice {index} had text behind its finish_reason"
        message = f"the completion is incomplete: {end} before {missing}"
        return BridgeError(Code.ABORTED, details_pb2.ERROR_REASON_INCOMPLETE_COMPLETION, message)


def check_count(choices: Any) -> None:
    """Raise JsonTooLargeError for more choices than any answer has, before they are walked."""
    if type(choices) is list and len(choices) > _CHOICES_MAX:
        raise JsonTooLargeError(f"it has more than {_CHOICES_MAX} choices")


def _check_shape(choices: Any) -> None:
    if type(choices) is not list:
        raise ChoicesError(f"expected a list as choices, found {_name_type(choices)}")
    for choice in choices:
        if type(choice) is not dict:
            raise ChoicesError(f"expected objects as choices, found {_name_type(choice)}")


def _read_index(index: Any) -> int | str:
    """Return the number that an index is: 0, 0.0 and "0" are one choice; none is the first."""
    if not index:
        return 0
    if type(index) is float and index.is_integer():
        return int(index)
    if type(index) is str and len(index) < 10 and index.isascii() and index.isdigit():
        return int(index)
    if type(index) is str:
        return index[:_INDEX_CHARS_MAX]
    return repr(index) if type(index) in {int, float} else _name_type(index)


def _is_reason(reason: Any, index: int | str) -> bool:
    """Return whether a value is a finish_reason. Raises BridgeError if it reports a failure."""
    if type(reason) is not str:
        return True
    word = reason.strip().lower()
    if word in _FAILURES or word.endswith("error"):
        message = f"the upstream ended choice {index} with finish_reason {reason[:100]!r}"
        raise BridgeError(Code.ABORTED, details_pb2.ERROR_REASON_UPSTREAM_STREAM_ERROR, message)
    return word not in _NO_REASONS


def has_content(choice: Mapping[str, Any]) -> bool:
    """Return whether a choice brings something that a model produced: any text, tool call or the like, but no role."""
    for key in ("delta", "message"):
        part = choice.get(key)
        if type(part) is dict:
            for name, value in part.items():
                if value and name != "role":
                    return True
    return False


def _name_type(value: Any) -> str:
    return _TYPE_NAMES.get(type(value), "a number")


_TYPE_NAMES: Final[Mapping[type, str]] = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "true or false",
    type(None): "null",
}
