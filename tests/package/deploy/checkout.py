"""The bridge of this checkout, as a program: the environment of these tests has none of what it needs."""

import os
from pathlib import Path

__all__ = ["BRIDGE", "ENVIRONMENT", "WAIT_S"]

_ROOT = Path(__file__).parents[3]
BRIDGE = _ROOT / ".venv" / "bin" / "ollm-bridge"
ENVIRONMENT = {
    "OLLM_BRIDGE_LISTEN": "0.0.0.0:50051",
    "PATH": os.environ["PATH"],
    "PYTHONPATH": f"{_ROOT}:{_ROOT / 'generated'}",
    "TMPDIR": "/tmp",
}
"""The environment that the image sets, with this checkout's bridge."""
WAIT_S = 60
