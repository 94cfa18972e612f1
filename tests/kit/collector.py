"""The garbage collector of a process that has thousands of tests."""

import gc

__all__ = ["freeze_heap"]


def freeze_heap() -> None:
    """Hide all objects from the collector but garbage: else each full collection walks the modules and every test."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
