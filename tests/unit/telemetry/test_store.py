"""The store's values are shown as prometheus_client would show its own, add up, and survive JSON."""

import threading

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.registry import Collector

from bridge.telemetry.metric_table import METRICS
from bridge.telemetry.store import MODELS_MAX, ModelLabels, Store
from bridge.telemetry.store import Histogram as OurHistogram

disable_created_metrics()
VALUES = st.one_of(
    st.integers(0, 2**53),
    st.floats(0, 1e9),
    st.sampled_from([bound for spec in METRICS.values() for bound in spec.buckets]),
)
WORDS = st.sampled_from(["a", "b", "", 'x"\\\n', "é"])
OBSERVATIONS = st.lists(
    st.sampled_from(list(METRICS)).flatmap(
        lambda key: st.tuples(st.just(key), st.tuples(*[WORDS] * len(METRICS[key].labels)), VALUES)
    ),
    max_size=30,
)


def fill(store: Store, observations) -> Store:
    for key, labels, value in observations:
        if METRICS[key].kind == "histogram":
            store.histograms[key][labels].observe(value)
        else:
            store.numbers[key][labels] += value
    return store


class _Collected(Collector):
    def __init__(self, store: Store) -> None:
        self._store = store

    def collect(self):
        return self._store.collect()


def write_page(store: Store) -> str:
    registry = CollectorRegistry()
    registry.register(_Collected(store))
    return generate_latest(registry).decode()


def write_their_page(observations) -> str:
    """Return the page of prometheus_client's own metrics after the same observations."""
    registry = CollectorRegistry()
    kinds = {"counter": Counter, "gauge": Gauge}
    metrics = {
        key: Histogram(spec.name, spec.help, spec.labels, buckets=spec.buckets, registry=registry)
        if spec.kind == "histogram"
        else kinds[spec.kind](spec.name, spec.help, spec.labels, registry=registry)
        for key, spec in METRICS.items()
    }
    for key, labels, value in observations:
        metric = metrics[key].labels(*labels) if labels else metrics[key]
        if METRICS[key].kind == "histogram":
            metric.observe(value)
        else:
            metric.inc(value)
    return generate_latest(registry).decode()


@settings(max_examples=50)
@given(OBSERVATIONS)
def test_any_values_are_shown_as_prometheus_client_shows_its_own(observations):
    assert write_page(fill(Store(), observations)) == write_their_page(observations)


@settings(max_examples=50)
@given(OBSERVATIONS)
def test_any_store_survives_json(observations):
    store = fill(Store(), observations)
    assert write_page(Store.load(orjson.loads(orjson.dumps(store.dump())))) == write_page(store)


def list_figures(store: Store) -> dict[object, object]:
    numbers = {(key, labels): value for key, all_ in store.numbers.items() for labels, value in all_.items() if value}
    counts = {(key, labels): each.counts for key, all_ in store.histograms.items() for labels, each in all_.items()}
    return numbers | {key: value for key, value in counts.items() if any(value)}


def can_be_summed(key: str) -> bool:
    return key != "info" and METRICS[key].total == "sum"


INTEGERS = OBSERVATIONS.map(
    lambda all_: [(key, labels, round(value)) for key, labels, value in all_ if can_be_summed(key)]
)


@settings(max_examples=50)
@given(INTEGERS, INTEGERS)
def test_any_two_stores_add_up(some, others):
    total = fill(Store(), some)
    total.merge(fill(Store(), others))
    assert list_figures(total) == list_figures(fill(fill(Store(), some), others))


def test_version_is_not_summed_and_gauges_can_be_left_out():
    store, total = Store(), Store()
    for key in ("info", "in_flight", "stream_ends"):
        store.numbers[key]["x",] = 1
    total.merge(store, gauges=False)
    assert list_figures(total) == {("stream_ends", ("x",)): 1}
    total.merge(store)
    assert list_figures(total) == {("stream_ends", ("x",)): 2, ("in_flight", ("x",)): 1}


def test_earliest_end_of_a_certificate_is_that_of_all_workers():
    total = Store()
    for at in (30, 10, 20):
        store = Store()
        store.numbers["certificate_expiry"]["tls.cert_file",] = at
        total.merge(store)
    assert list_figures(total) == {("certificate_expiry", ("tls.cert_file",)): 10}


def test_models_of_several_stores_are_bounded_together_and_keep_their_label():
    models = ModelLabels()
    for _ in range(2):
        total = Store()
        for worker in range(3):
            store = Store()
            for number in range(MODELS_MAX):
                for _ in range(2):
                    store.histograms["tokens"]["chat", f"{worker}-{number}", "input"].observe(1)
            store.histograms["tokens"]["chat", "other", "input"].observe(1)
            total.merge(store, models=models)
        counts = {labels[1]: sum(each.counts) for labels, each in total.histograms["tokens"].items()}
        assert counts == {f"0-{number}": 2 for number in range(MODELS_MAX)} | {"other": 4 * MODELS_MAX + 3}


@pytest.mark.parametrize(
    "dumped",
    [
        {},
        {"numbers": {"unknown": [[[], 1]]}, "histograms": {}},
        {"numbers": {}, "histograms": {"tokens": [[["a"], [1, 2], 3.0]]}},
        {"numbers": {"calls": 1}, "histograms": {}},
        {"numbers": [], "histograms": {}},
    ],
    ids=["empty", "an unknown metric", "other buckets", "no list", "no object"],
)
def test_what_is_no_store_is_not_loaded(dumped):
    with pytest.raises((KeyError, TypeError, ValueError, AttributeError)):
        Store.load(dumped)


def test_histogram_of_other_bounds_is_not_added():
    with pytest.raises(ValueError, match="argument 2"):
        OurHistogram((1, 2)).add([1, 2], 3.0)


def test_store_can_be_copied_in_a_thread_while_it_grows():
    store, done = Store(), threading.Event()
    errors = []

    def copy() -> None:
        while not done.is_set():
            copied = Store()
            try:
                copied.merge(store)
            except RuntimeError as error:
                errors.append(error)
                return

    thread = threading.Thread(target=copy)
    thread.start()
    for number in range(20_000):
        store.numbers["stream_ends"][str(number),] += 1
        store.histograms["translation"][str(number),].observe(0.1)
    done.set()
    thread.join()
    assert errors == []
