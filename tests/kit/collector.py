"""The garbage collector of a process that has thousands of tests."""

import contextlib
import gc
from collections import Counter
from collections.abc import Iterator

__all__ = ["collect_garbage", "freeze_heap"]


def freeze_heap() -> None:
    """Hide all objects from the collector but garbage: else each full collection walks the modules and every test."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


@contextlib.contextmanager
def collect_garbage(*packages: str) -> Iterator[Counter[str]]:
    """Yield what counts, once the block is over, the objects of the packages' classes that only the collector frees."""
    gc.collect()
    gc.disable()
    found: Counter[str] = Counter()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        kinds = [type(each) for each in gc.garbage]
        found.update(kind.__qualname__ for kind in kinds if str(kind.__module__).startswith(packages))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
