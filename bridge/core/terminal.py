"""Text of others for a terminal: control characters could move its cursor, change its title or forge a line."""

import re
from typing import Final

__all__ = ["escape_controls"]

_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_CONTROLS_AND_LINES: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")


def escape_controls(text: str, *, one_line: bool = False) -> str:
    """Return a text that is safe on a terminal; with `one_line` without line breaks too."""
    controls = _CONTROLS_AND_LINES if one_line else _CONTROLS
    return controls.sub(lambda found: ascii(found[0])[1:-1], text) if controls.search(text) else text
