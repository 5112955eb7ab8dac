"""A histogram and a counter that are cheap enough to update with every call.

prometheus_client's own types cost ten times as much. These may be updated from one thread only
and scraped from any; the sum in a scrape may lack the latest value that its buckets count.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString


class Histogram(Collector):
    """A histogram with labels.

    Args:
        name: Name of the metric.
        text: HELP text of the metric.
        buckets: Upper bounds of the buckets, ascending; infinity is added.
        registry: Registry that collects the metric.
        labels: Names of the metric's labels.
    """

    def __init__(
        self,
        name: str,
        text: str,
        buckets: Sequence[float],
        registry: CollectorRegistry,
        labels: Sequence[str] = (),
    ):
        self._name = name
        self._text = text
        self._labels = labels
        self._bounds = [float(bound) for bound in buckets]
        self._children: dict[tuple[str, ...], HistogramChild] = {}
        if not labels:
            self.child()
        registry.register(self)

    def child(self, *values: str) -> "HistogramChild":
        """Returns the histogram for these label values, always the same object."""
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = HistogramChild(self._bounds)
        return child

    def collect(self) -> Iterator[Metric]:
        """Yields the metric as prometheus_client exposes it."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        for values, child in list(self._children.items()):
            # One copy, so that the buckets are consistent while calls are being counted.
            counts, total = child.counts.copy(), 0
            buckets = []
            for name, count in zip(names, counts, strict=True):
                total += count
                buckets.append((name, float(total)))
            family.add_metric(values, buckets, child.sum)
        yield family


class HistogramChild:
    """The histogram of one combination of label values.

    Args:
        bounds: Upper bounds of the buckets, ascending, without infinity.

    Attributes:
        counts: Number of values in each bucket (not cumulative); the last has no upper bound.
        sum: Sum of all values.
    """

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: list[float]):
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Adds a value."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def observe_all(self, values: Sequence[float]) -> None:
        """Adds several values."""
        counts, bounds = self.counts, self._bounds
        for value in values:
            counts[bisect_left(bounds, value)] += 1
        self.sum += sum(values)


class Counter(Collector):
    """A counter with labels.

    Args:
        name: Name of the metric, without the `_total` that is exposed.
        text: HELP text of the metric.
        registry: Registry that collects the metric.
        labels: Names of the metric's labels.
    """

    def __init__(
        self, name: str, text: str, registry: CollectorRegistry, labels: Sequence[str] = ()
    ):
        self._name = name
        self._text = text
        self._labels = labels
        self._children: dict[tuple[str, ...], CounterChild] = {}
        registry.register(self)

    def child(self, *values: str) -> "CounterChild":
        """Returns the counter for these label values, always the same object."""
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = CounterChild()
        return child

    def collect(self) -> Iterator[Metric]:
        """Yields the metric as prometheus_client exposes it."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for values, child in list(self._children.items()):
            family.add_metric(values, float(child.value))
        yield family


class CounterChild:
    """The counter of one combination of label values; callers increment `value` themselves.

    Attributes:
        value: The count so far.
    """

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0
