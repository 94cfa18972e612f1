"""The media type of an answer, if its Content-Type is given once, several times, or as a list.

The rule is the Fetch standard's (https://fetch.spec.whatwg.org/#concept-header-extract-mime-type): the last valid value
counts, and takes over the charset of an earlier one of the same type if it has none itself.
"""

import re
from typing import Final

__all__ = ["choose_media_type", "get_charset", "get_essence"]

_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_VALID: Final = re.compile(rf"{_WORD}/{_WORD}\s*(?:;.*)?", re.DOTALL)
# Each quote begins a string, which ends with the text at the latest; if it might not, each quote would be tried.
_ITEM: Final = re.compile(r'(?:"(?:[^"\\]|\\.?)*(?:"|\Z)|[^,"])+', re.DOTALL)
_CHARSET: Final = re.compile(rf';\s*charset\s*=\s*(?:"([^"]*)"|({_WORD}))', re.IGNORECASE)


def choose_media_type(header: str) -> str:
    """Return the value that counts, of those that the header has; as it is if no value is valid."""
    if "," not in header:
        return header
    chosen = essence = charset = ""
    for item in _ITEM.findall(header):
        value = item.strip()
        if not _VALID.fullmatch(value) or value.startswith("*/*"):
            continue
        if get_essence(value) != essence:
            essence, charset = get_essence(value), ""
        charset = get_charset(value) or charset
        chosen = value
    if charset and not get_charset(chosen):
        chosen += f"; charset={charset}"
    return chosen or header


def get_essence(media_type: str) -> str:
    """Return type and subtype, in lower case."""
    return media_type.partition(";")[0].strip().lower()


def get_charset(media_type: str) -> str:
    """Return the charset that a media type names, or "" if it names none."""
    match = _CHARSET.search(media_type)
    return (match[1] or match[2] or "") if match else ""
