"""A histogram and a counter for what happens with every call.

prometheus_client's own cost ten times that. These are to be fed from one thread; they may be
collected from any, and what a histogram then shows is at most one value behind in its sum.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString


class Histogram(Collector):
    """Counts values by buckets, for each combination of labels.

    Args:
        name: Of the metric.
        text: What it tells.
        buckets: Upper bounds, ascending; infinity is added.
        labels: Names of its labels.
        registry: Where it is collected.
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
        self._children: dict[tuple[str, ...], Child] = {}
        if not labels:
            self.of()
        registry.register(self)

    def of(self, *labels: str) -> "Child":
        """Returns what counts under some labels."""
        child = self._children.get(labels)
        if child is None:
            child = self._children[labels] = Child(self._bounds)
        return child

    def collect(self) -> Iterator[Metric]:
        """Returns what Prometheus is told."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        for labels, child in list(self._children.items()):
            # One copy, so that the buckets add up while others are being counted.
            counts, total = child.counts.copy(), 0
            buckets = []
            for name, count in zip(names, counts, strict=True):
                total += count
                buckets.append((name, float(total)))
            family.add_metric(labels, buckets, child.sum)
        yield family


class Child:
    """The counts under one combination of labels."""

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: list[float]):
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Counts a value."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value


class Counter(Collector):
    """Counts what happens, for each combination of labels.

    Args:
        name: Of the metric, without the `_total` that it is shown with.
        text: What it tells.
        registry: Where it is collected.
        labels: Names of its labels.
    """

    def __init__(
        self, name: str, text: str, registry: CollectorRegistry, labels: Sequence[str] = ()
    ):
        self._name = name
        self._text = text
        self._labels = labels
        self._counts: dict[tuple[str, ...], Count] = {}
        registry.register(self)

    def of(self, *labels: str) -> "Count":
        """Returns the count under some labels."""
        count = self._counts.get(labels)
        if count is None:
            count = self._counts[labels] = Count()
        return count

    def collect(self) -> Iterator[Metric]:
        """Returns what Prometheus is told."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for labels, count in list(self._counts.items()):
            family.add_metric(labels, float(count.value))
        yield family


class Count:
    """The count under one combination of labels.

    Attributes:
        value: How often it has happened.
    """

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0
