"""How grave a call's end is, by who has to act: the level of its line in the log.

What a caller can fix, or has ended, is `info`, and so is a drain, which somebody has asked for. What the gateway or a
limit of the bridge did is `warning`; a rejected key of the bridge's own and an internal error are `error`.
"""

import logging
from functools import lru_cache
from typing import Final

from bridge.core.reasons import find_party

__all__ = ["find_severity"]

_BY_REASON: Final = {
    "DRAINING": logging.INFO,
    "CREDENTIALS_REJECTED": logging.ERROR,
    "BRIDGE_FAULT": logging.ERROR,
}


@lru_cache(256)
def find_severity(reason: str) -> int:
    """Return logging's level for a call, by the name of its reason; "" if it is OK or its caller has ended it."""
    return _BY_REASON.get(reason, logging.INFO if find_party(reason) == "caller" else logging.WARNING)
