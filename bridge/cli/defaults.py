"""What the commands share, and costs nothing to import."""

from typing import Final

__all__ = ["DEFAULT_ADDRESS", "DEFAULT_MODEL", "SHELLS", "UsageError"]

DEFAULT_ADDRESS: Final = "127.0.0.1:50051"
DEFAULT_MODEL: Final = "near_qwen3_30b"
SHELLS: Final = ("bash", "fish", "zsh")


class UsageError(Exception):
    """A command or settings that can't be used. The text says why; the exit code is 2."""
