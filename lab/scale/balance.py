"""How evenly replicas are loaded, by what callers balance with: a seeded discrete-event simulation.

Callers of unequal weight open streams of unequal length, and after a while one more replica joins. The result is the
number of streams that each replica has open, once a second. A balancer knows what a real one of its kind knows:
grpc's pick_first and round_robin learn of a new replica when a connection ends and the name is resolved again; a mesh's
proxies are notified, and choose the less loaded of two by their own open calls, or weigh replicas by the load that
each reports with a stream's end (ORCA). `connections.age_s` ends connections; running streams continue on an old one.

Not simulated: the slowness of a loaded replica, the network, and failures.
"""

import heapq
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Final, Protocol

__all__ = [
    "CASES",
    "NEARLY",
    "SEEDS",
    "STEP_S",
    "Balancer",
    "Case",
    "Outcome",
    "Run",
    "World",
    "run_case",
    "simulate_run",
]


@dataclass(frozen=True)
class World:
    """The parameters of a simulation. Replica number `replicas` is the one that joins."""

    replicas: int = 10
    callers: int = 40
    open_per_replica: float = 100.0
    """Streams open at once, on average: at this number a replica of one core is well used."""
    stream_median_s: float = 8.0
    stream_sigma: float = 1.2
    """Of the lognormal length: half take 8 s, one in ten 37 s, one in a hundred 130 s."""
    caller_sigma: float = 1.0
    """Of the lognormal weight: the largest of 40 callers sends about a sixth of all."""
    warm_s: float = 300.0
    """Until the streams of the start no longer matter."""
    join_at_s: float = 900.0
    end_s: float = 2700.0
    age_jitter: float = 0.1
    """grpc's, of a connection's age."""
    resolve_pause_s: float = 30.0
    """grpc's, between two resolutions of a name."""
    push_s: float = 1.0
    """Until a mesh's proxies know of a replica."""
    rate_s: float = 10.0
    """Over which a replica measures the rate that it reports, as bridge/server/load.py does."""
    blackout_s: float = 10.0
    """Envoy's and grpc's, from a replica's first report until its weight counts."""
    update_s: float = 1.0
    """Envoy's and grpc's, between two computations of the weights."""

    @property
    def rate(self) -> float:
        """Streams that start, a second."""
        mean_s = self.stream_median_s * math.exp(self.stream_sigma**2 / 2)
        return self.replicas * self.open_per_replica / mean_s

    def count_replicas(self, now: float) -> int:
        """Return the number of replicas."""
        return self.replicas + (now >= self.join_at_s)


@dataclass(frozen=True)
class LoadReport:
    """What a replica reports with the end of a stream: its open streams with that one, and its rate of new ones."""

    open: int
    rate: float


class Balancer(Protocol):
    """Chooses replicas, for one caller or for all."""

    def pick(self, now: float) -> int:
        """Choose the replica of a stream that starts."""
        ...

    def on_end(self, replica: int, now: float, report: LoadReport) -> None:
        """Record the end of a stream of this balancer's."""
        ...


class PickFirst:
    """grpc's default: one connection, to any replica, until it ends."""

    def __init__(self, world: World, random: Random, age_s: float | None) -> None:
        self._world, self._random, self._age_s = world, random, age_s
        self._replica = -1
        self._ends_at = -math.inf

    def pick(self, now: float) -> int:
        if now >= self._ends_at:
            self._replica = self._random.randrange(self._world.count_replicas(now))
            self._ends_at = now + _draw_age_s(self._world, self._random, self._age_s)
        return self._replica

    def on_end(self, replica: int, now: float, report: LoadReport) -> None:
        """Ignore it."""


class RoundRobin:
    """grpc's round_robin: a connection to each replica of the last resolution, in turn; an end causes a new one."""

    def __init__(self, world: World, random: Random, age_s: float | None) -> None:
        self._world, self._random, self._age_s = world, random, age_s
        self._resolved_at = 0.0
        self._resolve_at = math.inf
        self._end_at: list[float] = []
        self._next_end_at = math.inf
        self._connect(0.0)
        self._turn = random.randrange(len(self._end_at))

    def pick(self, now: float) -> int:
        if now >= self._next_end_at:
            self._resolve_at = min(
                self._resolve_at, max(self._next_end_at, self._resolved_at + self._world.resolve_pause_s)
            )
            self._end_at = [end_at if now < end_at else self._draw_end(now) for end_at in self._end_at]
            self._next_end_at = min(self._end_at)
        if now >= self._resolve_at:
            self._resolved_at, self._resolve_at = now, math.inf
            self._connect(now)
        self._turn = (self._turn + 1) % len(self._end_at)
        return self._turn

    def _connect(self, now: float) -> None:
        missing = self._world.count_replicas(now) - len(self._end_at)
        self._end_at += [self._draw_end(now) for _ in range(missing)]
        self._next_end_at = min(self._end_at)

    def _draw_end(self, now: float) -> float:
        return now + _draw_age_s(self._world, self._random, self._age_s)

    def on_end(self, replica: int, now: float, report: LoadReport) -> None:
        """Ignore it."""


class LeastRequest:
    """A mesh's proxy: of two replicas chosen at random, the one at which it has fewer open streams itself."""

    def __init__(self, world: World, random: Random, age_s: float | None) -> None:
        self._world, self._random = world, random
        self._open = [0] * (world.replicas + 1)

    def pick(self, now: float) -> int:
        known = self._world.count_replicas(now - self._world.push_s)
        one, other = self._random.randrange(known), self._random.randrange(known)
        replica = one if self._open[one] <= self._open[other] else other
        self._open[replica] += 1
        return replica

    def on_end(self, replica: int, now: float, report: LoadReport) -> None:
        self._open[replica] -= 1


class Weighted:
    """A proxy or a client that weighs replicas by their reports: rate over utilization, and in turn by weight."""

    def __init__(self, world: World, random: Random, age_s: float | None) -> None:
        self._world, self._random = world, random
        self._reports: dict[int, LoadReport] = {}
        self._since: dict[int, float] = {}
        self._weights: list[float] = []
        self._turns: list[float] = []
        self._update_at = 0.0

    def pick(self, now: float) -> int:
        known = self._world.count_replicas(now - self._world.push_s)
        if now >= self._update_at or known != len(self._weights):
            self._update_at = now + self._world.update_s
            self._weigh(known, now)
        self._turns = [turn + weight for turn, weight in zip(self._turns, self._weights, strict=True)]
        replica = max(range(known), key=self._turns.__getitem__)
        self._turns[replica] -= sum(self._weights)
        return replica

    def _weigh(self, known: int, now: float) -> None:
        """Compute the weights; a replica without one that counts has the mean of the others."""
        weights = {
            replica: report.rate / report.open
            for replica, report in self._reports.items()
            if now - self._since[replica] >= self._world.blackout_s and report.rate
        }
        mean = statistics.fmean(weights.values()) if weights else 1.0
        self._weights = [weights.get(replica, mean) for replica in range(known)]
        # A place in the turn at random, so that balancers do not choose the same replica at once.
        self._turns += [self._random.random() * mean for _ in range(known - len(self._turns))]

    def on_end(self, replica: int, now: float, report: LoadReport) -> None:
        self._since.setdefault(replica, now)
        self._reports[replica] = report


def _draw_age_s(world: World, random: Random, age_s: float | None) -> float:
    return math.inf if age_s is None else age_s * random.uniform(1 - world.age_jitter, 1 + world.age_jitter)


@dataclass(frozen=True)
class Case:
    """A way to balance. `shared`: one balancer serves all callers, as a tier of few proxies nearly does."""

    name: str
    balancer: Callable[[World, Random, float | None], Balancer]
    age_s: float | None = None
    shared: bool = False


CASES: Final = (
    Case("pick_first", PickFirst),
    Case("pick_first", PickFirst, 1800),
    Case("pick_first", PickFirst, 300),
    Case("pick_first", PickFirst, 60),
    Case("round_robin", RoundRobin),
    Case("round_robin", RoundRobin, 1800),
    Case("round_robin", RoundRobin, 300),
    Case("round_robin", RoundRobin, 60),
    Case("least request, a proxy a caller", LeastRequest),
    Case("least request, one proxy", LeastRequest, shared=True),
    Case("weighted by load reports, a proxy a caller", Weighted),
    Case("weighted by load reports, one proxy", Weighted, shared=True),
)


@dataclass(frozen=True)
class Run:
    """One run: the open streams of each replica, each second and at the end; the streams started and ended."""

    loads: Sequence[Sequence[int]]
    open_at_end: Sequence[int]
    streams_started: int
    streams_ended: int


def simulate_run(world: World, case: Case, seed: int) -> Run:
    """Run the world from its start, when all connect, to its end."""
    random = Random(seed)
    weights = [random.lognormvariate(0, world.caller_sigma) for _ in range(world.callers)]
    count = 1 if case.shared else world.callers
    balancers = [case.balancer(world, random, case.age_s) for _ in range(count)]
    callers = iter(random.choices(range(count), weights[:count], k=1 + round(2 * world.rate * world.end_s)))
    open_now = [0] * (world.replicas + 1)
    rates = [_Rate(world.rate_s) for _ in open_now]
    loads: list[list[int]] = []
    ends: list[tuple[float, int, int]] = []
    streams_ended = 0
    scale = math.log(world.stream_median_s)
    now = random.expovariate(world.rate)
    for number in range(1 + round(2 * world.rate * world.end_s)):
        while ends and ends[0][0] <= now:
            at, replica, caller = heapq.heappop(ends)
            _record_loads(loads, open_now, at)
            balancers[caller].on_end(replica, at, LoadReport(open_now[replica], rates[replica].measure(at)))
            open_now[replica] -= 1
            streams_ended += 1
        _record_loads(loads, open_now, now)
        if now >= world.end_s:
            return Run(loads[: int(world.end_s)], open_now, number, streams_ended)
        caller = next(callers)
        replica = balancers[caller].pick(now)
        open_now[replica] += 1
        rates[replica].add(now)
        heapq.heappush(ends, (now + random.lognormvariate(scale, world.stream_sigma), replica, caller))
        now += random.expovariate(world.rate)
    raise RuntimeError("the world did not end within twice its average number of streams")


class _Rate:
    """How many streams start a second at a replica, lately; what is older fades."""

    def __init__(self, over_s: float) -> None:
        self._over_s = over_s
        self._count, self._at, self._began_at = 0.0, 0.0, -1.0

    def add(self, now: float) -> None:
        if self._began_at < 0:
            self._began_at = now
        self._count = self._count * math.exp((self._at - now) / self._over_s) + 1
        self._at = now

    def measure(self, now: float) -> float:
        seen_s = self._over_s * -math.expm1(-(now - self._began_at) / self._over_s)
        return self._count * math.exp((self._at - now) / self._over_s) / seen_s if seen_s else 0.0


def _record_loads(loads: list[list[int]], open_now: list[int], now: float) -> None:
    """Record the loads of each whole second before now."""
    while len(loads) < now:
        loads.append(open_now.copy())


@dataclass(frozen=True)
class Outcome:
    """The result of a case: medians over the seeds.

    `unevenness` is the most loaded replica's streams over the mean, before the join: its mean over time, and its p99.
    `newcomer` is the joined replica's load over the mean, a value for each `STEP_S` after the join. `even_s` is how
    long until that is NEARLY, None if it was not by the end, in most runs.
    """

    case: Case
    unevenness: float
    unevenness_p99: float
    newcomer: Sequence[float]
    even_s: float | None


SEEDS: Final = (1, 2, 3)
STEP_S: Final = 30
NEARLY: Final = 0.9


def run_case(world: World, case: Case, seeds: Sequence[int]) -> Outcome:
    """Run a case with each seed, and return the medians."""
    runs = [simulate_run(world, case, seed) for seed in seeds]
    warm, join = int(world.warm_s), int(world.join_at_s)
    before = [[_measure_unevenness(each[: world.replicas]) for each in run.loads[warm:join]] for run in runs]
    after = [_measure_newcomer(run.loads[join:]) for run in runs]
    even_s = statistics.median(_find_even_s(each) for each in after)
    return Outcome(
        case=case,
        unevenness=statistics.median(statistics.fmean(each) for each in before),
        unevenness_p99=statistics.median(sorted(each)[int(0.99 * len(each))] for each in before),
        newcomer=[statistics.median(shares) for shares in zip(*after, strict=True)],
        even_s=None if math.isinf(even_s) else even_s,
    )


def _measure_unevenness(loads: Sequence[int]) -> float:
    return max(loads) / statistics.fmean(loads)


def _find_even_s(shares: Sequence[float]) -> float:
    return next((number * STEP_S for number, share in enumerate(shares, 1) if share >= NEARLY), math.inf)


def _measure_newcomer(loads: Sequence[Sequence[int]]) -> list[float]:
    """Return the last replica's share of an even part, over each step."""
    bounds = range(0, len(loads) + 1, STEP_S)
    parts = (loads[begin:end] for begin, end in pairwise(bounds))
    return [sum(each[-1] for each in part) * len(part[0]) / sum(map(sum, part)) for part in parts]
