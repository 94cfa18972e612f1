"""What the kernel says of the bridge's processes, as prometheus_client's `process_` metrics: of several, their sum.

CPU time is a counter, so that of workers that have ended stays in the sum: the kernel keeps it for their parent. The
start time is that of the process that shows the page.
"""

import resource
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prometheus_client import Metric, ProcessCollector
from prometheus_client.registry import Collector

__all__ = ["Processes"]

_CPU: Final = "process_cpu_seconds"
_START_TIME: Final = "process_start_time_seconds"


def read_process(pid: int | str) -> Iterable[Metric]:
    """Return the metrics of a process; none if there is no /proc, or it is gone."""
    return ProcessCollector(pid=lambda: pid, registry=None).collect()


class Processes(Collector):
    """The figures of this process and of those that `pids` returns, summed. A process that is gone counts as 0."""

    def __init__(
        self,
        pids: Callable[[], Iterable[int]] = tuple,
        *,
        read: Callable[[int | str], Iterable[Metric]] = read_process,
    ) -> None:
        self._pids = pids
        self._read = read
        self._cpu_s = 0.0

    def collect(self) -> Iterator[Metric]:
        """Yield each metric; none where there is no /proc."""
        families = {family.name: family for family in self._read("self")}
        for pid in self._pids():
            for family in self._read(pid):
                if family.name in families and family.name != _START_TIME:
                    _add(families[family.name], family.samples[0].value)
        if _CPU in families:
            ended = resource.getrusage(resource.RUSAGE_CHILDREN)
            _add(families[_CPU], ended.ru_utime + ended.ru_stime)
            # A worker may end between two readings and be in none of them: a counter must not go back.
            self._cpu_s = max(self._cpu_s, families[_CPU].samples[0].value)
            families[_CPU].samples[0] = families[_CPU].samples[0]._replace(value=self._cpu_s)
        yield from families.values()


def _add(family: Metric, value: float) -> None:
    sample = family.samples[0]
    family.samples[0] = sample._replace(value=sample.value + value)
