"""What no text may say: the keys that the bridge holds, and whatever has the shape of a key. How a text is truncated.

The rule is to redact first and to truncate then, since the end of a text can be what shows a key: the @ of a URL with
userinfo. What a status, a header or a detail does with the text is up to them.

A text can be anybody's, so no shape may take more than its length: whatever looks ahead from each of many places has a
bound, and a run that is longer counts as a key.
"""

import functools
import re
from collections.abc import Iterable
from typing import Final

__all__ = ["SCANNED_CHARS_MAX", "redact", "redact_and_truncate", "truncate"]

SCANNED_CHARS_MAX: Final = 16 * 1024
"""How much of a text is searched for keys; what is behind is cut off anyway."""

_REDACTED: Final = "[redacted]"
_KEY_CHARS_MAX: Final = 512
"""Of a key whose end is cut off, the most that is dropped with it."""
_SHORT_KEY_CHARS: Final = 8
"""A key of fewer characters can be a word, or a part of one: it is redacted if it stands alone."""

# Where a key can begin: not inside a word of ASCII. \b would not do, since 钥 is of a word too, and so is the n of "\n"
# in JSON text, which is also why no shape takes in a backslash: what is left must be JSON text still.
_EDGE: Final = r"(?:(?<![A-Za-z0-9])|(?<=\\[bfnrt])|(?<=\\u[0-9A-Fa-f]{4}))"
_VALUE: Final = r"[^\s\"'`,;&<>(){}\[\]\\]"
_VALUE_RUN: Final = rf"(?:{_VALUE}{{0,63}}\d|{_VALUE}{{64}})"
"""What has a digit, and no word is as long."""
_JWT: Final = r"[A-Za-z0-9_\-]"
_PREFIXES: Final = (
    r"AIza|AKIA|ASIA|gsk_|xai-|hf_|pplx-|nvapi-|r8_|tgp_v1_|gh[opsu]_|github_pat_|glpat-|xox[abprs]-"
    r"|[prs]k_(?:live|test)_"
)
# What follows "Bearer" in a sentence or in a challenge, and is no key.
_BEARER_WORDS: Final = (
    r"(?:a|an|and|api|auth|authentication|authorization|based|credentials?|error|followed|for|format|from|headers?|in"
    r"|invalid|is|jwt|keys?|keyword|mechanism|method|missing|must|not|or|prefix|realm|required|schemes?|scope|should"
    r"|strings?|style|the|then|to|tokens?|types?|values?|was|with|your)(?![\w\-/+~]|\.\w)"
)
_HINTS: Final = (
    *("sk-", "bearer", "basic", "://", ":\\", "key", "token", "secret", "password", "sig", "eyj"),
    *("aiza", "akia", "asia", "gsk_", "xai-", "hf_", "pplx-", "nvapi-", "r8_", "tgp_v1_"),
    *("ghp_", "gho_", "ghs_", "ghu_", "github_pat_", "glpat-", "xox", "k_live", "k_test"),
)
"""A part of every shape of a key, in lower case. Most texts have none, and to look for them is ten times as fast."""
_KEY_SHAPES: Final = (
    # `api_key=…`, `x-api-key: …`, `"password": "…"`, `?key=…`; behind a colon in a sentence, only if it has a digit.
    (
        re.compile(
            rf"((?i:x-(?:goog-)?api-key|api[-_]?key|access[-_]?token|auth[-_]?token|client[-_]?secret|password)"
            rf"(?:\\*[\"']\s*[:=]\s*\\*[\"']|\s?=\s?\\*[\"']?|(?<=(?i:-key))\s?:\s?|\s?:\s?(?={_VALUE_RUN})(?={_VALUE}{{8}})))"
            rf"(?!\[redacted\]){_VALUE}+"
        ),
        rf"\1{_REDACTED}",
    ),
    (re.compile(rf"([?&](?i:key|token|sig|signature)=){_VALUE}+"), rf"\1{_REDACTED}"),
    (re.compile(rf"{_EDGE}[sS][kK]-[A-Za-z0-9_\-*.]{{4,}}"), f"sk-{_REDACTED}"),
    (re.compile(rf"{_EDGE}({_PREFIXES})[A-Za-z0-9_\-*]{{8,}}"), rf"\1{_REDACTED}"),
    (re.compile(rf"{_EDGE}eyJ(?:{_JWT}{{5,255}}\.{_JWT}{{2}}|{_JWT}{{256}})[A-Za-z0-9_\-.]*"), _REDACTED),
    (re.compile(rf"{_EDGE}((?i:bearer))\s+(?!\[redacted\]|(?i:{_BEARER_WORDS}))[^\s\"',;}}\\]+"), rf"\1 {_REDACTED}"),
    # "basic" is a word as well; base64 of a name and a password has digits or capitals.
    (re.compile(rf"{_EDGE}((?i:basic))\s+(?=[a-z+/]*[A-Z0-9])[A-Za-z0-9+/]{{6,}}=*"), rf"\1 {_REDACTED}"),
    (re.compile(r"([A-Za-z][A-Za-z0-9+.\-]{0,20}:(?:\\*/){2})[^\s/@\"']+@"), rf"\1{_REDACTED}@"),
)


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Replace the exact `secrets`, and everything that has the shape of a key."""
    for secret in secrets:
        text = _compile_secret(secret).sub(_REDACTED, text)
    lowered = text.lower()
    for hint in _HINTS:
        if hint in lowered:
            return _redact_shapes(text)
    return text


def _redact_shapes(text: str) -> str:
    for shape, replacement in _KEY_SHAPES:
        text = shape.sub(replacement, text)
    return text


@functools.lru_cache(16)
def _compile_secret(secret: str) -> re.Pattern[str]:
    """Return the pattern of a secret as it is, and in each escaping that its characters may have."""
    pattern = "".join(_spell(match[0], after_backslash=match[1] is not None) for match in _PART.finditer(secret))
    is_short = len(secret) < _SHORT_KEY_CHARS
    return re.compile(rf"(?<![A-Za-z0-9])(?:{pattern})(?![A-Za-z0-9])" if is_short else pattern)


_PART: Final = re.compile(r"\\+|(?<=(\\)).|.", re.DOTALL)
"""A run of backslashes, or another character. The group is set behind a run."""
_UNESCAPED: Final = frozenset("-_.")
"""Nothing escapes these, nor letters and digits."""


def _spell(part: str, *, after_backslash: bool) -> str:
    """Return the pattern of a part of a secret: in JSON text, in JSON text in it, percent-encoded, and in HTML.

    Each repetition has a bound, so that no text costs more than its length.
    """
    char, count = part[0], len(part)
    if char.isalnum() or char in _UNESCAPED:
        return char
    code = ord(char)
    if char == "\\":
        plain = rf"\\{{{count},{count + 63}}}"
    else:
        plain = (r"\\{0,15}" if char in "\"'/" and not after_backslash else "") + re.escape(char)
    entities = "|".join((f"#0{{0,4}}{code};", f"#[xX]0{{0,4}}(?i:{code:x});", *_ENTITIES.get(char, ())))
    coded = rf"\\{{1,16}}u(?i:{code:04x})|%(?:25){{0,3}}(?i:{code:02x})|&(?:amp;){{0,3}}(?:{entities})"
    return rf"(?:(?:{coded}){{{count}}}|{plain})"


_ENTITIES: Final = {"&": ("amp;",), "<": ("lt;",), ">": ("gt;",), '"': ("quot;",), "'": ("apos;",)}


def truncate(text: str, bytes_max: int) -> str:
    """Cut a text to a number of bytes of UTF-8, at the edge of a character."""
    return text.encode("utf-8", "replace")[: max(bytes_max, 0)].decode("utf-8", "ignore")


def redact_and_truncate(text: str, bytes_max: int, secrets: Iterable[str] = ()) -> str:
    """Redact a text and truncate it. What is searched is bounded; what may be a key across that bound is dropped."""
    found = redact(text[:SCANNED_CHARS_MAX], secrets)
    if len(found) < SCANNED_CHARS_MAX < len(text):  # else what is at the bound is far behind `bytes_max`
        found = found[:-_KEY_CHARS_MAX] + found[-_KEY_CHARS_MAX:].rstrip(_KEY_CHARS)
    return truncate(found, bytes_max)


_KEY_CHARS: Final = "".join(map(chr, range(0x21, 0x7F)))
