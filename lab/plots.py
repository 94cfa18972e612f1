"""The style of the plots of docs/, and their files: SVG, the same for the same figures; no date, no random ids."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

__all__ = ["open_plot"]

STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "font.size": 9,
    "grid.color": "#dddddd",
    "svg.fonttype": "none",
    "svg.hashsalt": "ollm-bridge",
}


@contextlib.contextmanager
def open_plot(path: Path) -> Iterator[ModuleType]:
    """Yield matplotlib's pyplot, and save what is drawn."""
    import matplotlib as mpl  # noqa: PLC0415 - what only prints does without
    from matplotlib import pyplot as plt  # noqa: PLC0415

    with mpl.rc_context(STYLE):
        yield plt
        plt.savefig(path, metadata={"Date": None}, bbox_inches="tight")
        plt.close()
