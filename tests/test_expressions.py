"""No regular expression of bridge/ takes more than the length of a text that a caller or a gateway chose.

`re` tries again from each place, and holds the GIL: two repetitions side by side that match the same characters, or a
look ahead from each of many places, take the square of a text, and the whole process stands still meanwhile. The worst
texts of the modules that use `re` are here, of a size at which the square takes many minutes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from bridge.core.redact import redact, redact_and_truncate

CHARS = 2**20


class Worst(NamedTuple):
    """A text for a function: a piece of it again and again, between a start and an end."""

    act: Callable[[str], Any]
    piece: str
    before: str = ""
    after: str = ""

    def build(self) -> str:
        return self.before + self.piece * (CHARS // len(self.piece)) + self.after


def build_all(act: Callable[[str], Any], *texts: str | tuple[str, ...]) -> list[Worst]:
    """Return the worst texts of a function, each a piece, or what is before it, the piece, and what is behind it."""
    parts = [("", text, "") if isinstance(text, str) else (*text, "")[:3] for text in texts]
    return [Worst(act, piece, before, after) for before, piece, after in parts]


WORST: dict[str, list[Worst]] = {
    "core.redact": [
        *build_all(
            redact,
            *("api_key:", "password: ", "password\\", ("password", " "), ('password" : ', "\\"), ("password=", "\\")),
            *("?key=", "sk-", "gsk_", "eyJ", "-eyJaaaaaa", ("eyJaaaaa", ".a"), "bearer ", ("bearer", " ", '"')),
            *(("basic ", "a"), ("basic", " "), "basic a/", "a://", ("a:", "\\"), ("a" * 21 + "://", "b")),
        ),
        *build_all(lambda text: redact(text, ["a\\\\b\"/'<>&"]), ("a", "\\"), "&amp;", "a%25", "&#0"),
        *build_all(lambda text: redact(text, ['"' * 20, "/" * 20, "%25" * 9]), '\\"', "\\/", "%25"),
        *build_all(lambda text: redact_and_truncate(text, 200), "api_key:"),
    ],
}


@pytest.mark.parametrize(
    "worst",
    [
        pytest.param(worst, id=f"{name}-{worst.before}{worst.piece}*{worst.after}")
        for name, all_worst in WORST.items()
        for worst in all_worst
    ],
)
def test_worst_text_takes_no_more_than_its_length(worst):
    worst.act(worst.build())
