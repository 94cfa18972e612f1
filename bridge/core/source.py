"""A JSON document's text, from which values are cut byte for byte, and what reading it may cost.

What no field of a message holds is kept as the text that came, so that numbers keep their digits and objects their
order. Which values those are is the codec's business. What is to be walked or cut is counted before that is done.
"""

from collections.abc import Callable
from typing import Any, Final, TypeAlias, TypeVar

import msgspec

from bridge.core.json_text import JsonError, JsonTooLargeError

__all__ = ["CUTS_MAX", "OBJECTS_MAX", "Path", "Source"]

OBJECTS_MAX: Final = (16_384, 16, 131_072)
"""Objects in arrays of a document that are read into messages, at 2 to 4 µs each: as many in any document, one more for
so many bytes of a large one, which is read in a thread, and the most."""
CUTS_MAX: Final = (2048, 64, 16_384)
"""Members of a document that no field holds, at 15 µs each: as above."""
CUTS_SPARE: Final = 1024
"""Of them, for what is left of a document after an array had too much."""

Path: TypeAlias = tuple[str | int, ...]
"""A place in a JSON document: keys and indices from the root."""

_OUTER_ARRAYS: Final = 2
"""The choices, and an array in one of them."""
_T = TypeVar("_T")


def _bound(bounds: tuple[int, int, int], text: bytes) -> int:
    any_document, bytes_each, most = bounds
    return min(max(any_document, len(text) // bytes_each), most)


_OBJECT_DECODER: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ARRAY_DECODER: Final = msgspec.json.Decoder(list[msgspec.Raw])


class Source:
    """A JSON document's text, from which values are cut byte for byte.

    A level is sliced only when a value of it is needed, once, and its slices are kept. It also keeps how much more of
    the document may be read, since that is a bound of the document, not of one array or object.

    An array in a choice that has too much is text as a whole, the arrays in it included, and so are those behind it:
    a reader finds all of the tokens' log probabilities in one place, or none.
    """

    __slots__ = ("_arrays", "_cuts_left", "_levels", "_objects_left", "_text")

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._levels: dict[Path, Any] = {}
        self._objects_left = _bound(OBJECTS_MAX, text)
        self._cuts_left = _bound(CUTS_MAX, text)
        self._arrays = 0

    def read_array(self, objects: int, read: Callable[[], _T]) -> _T | None:
        """Return what `read` returns of an array of so many objects; None if it is to be kept as text.

        Raises JsonTooLargeError if the document has too much outside of the arrays in its choices.
        """
        if objects > self._objects_left:
            if self._arrays < _OUTER_ARRAYS:
                return None
            raise JsonTooLargeError("it has too many objects in one array")
        self._objects_left -= objects
        self._arrays += 1
        try:
            return read()
        except JsonTooLargeError:
            if self._arrays != _OUTER_ARRAYS:
                raise
            self._objects_left, self._cuts_left = 0, CUTS_SPARE
            return None
        finally:
            self._arrays -= 1

    def count_cuts(self, cuts: int) -> None:
        """Count members that are to be cut. Raises JsonTooLargeError if there are too many."""
        self._cuts_left -= cuts
        if self._cuts_left < 0:
            cuts_max = _bound(CUTS_MAX, self._text)
            raise JsonTooLargeError(f"it has more than {cuts_max} members that no field holds")

    def cut(self, path: Path) -> str:
        """Return the text of the value at a path. Raises JsonError if the value nests too deeply to be sliced."""
        return str(memoryview(self._slice(path)), "utf-8")

    def _slice(self, path: Path) -> bytes | msgspec.Raw:
        if not path:
            return self._text
        parent = path[:-1]
        level = self._levels.get(parent)
        if level is None:
            decoder: Any = _ARRAY_DECODER if isinstance(path[-1], int) else _OBJECT_DECODER
            try:
                level = decoder.decode(self._slice(parent))
            except (RecursionError, msgspec.MsgspecError) as error:
                raise JsonError(f"can't be sliced: {error}") from None
            self._levels[parent] = level
        raw: msgspec.Raw = level[path[-1]]
        return raw
