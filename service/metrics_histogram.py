"""A histogram for what happens with every call: prometheus_client's own costs ten times that."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry
from prometheus_client.utils import floatToGoString


class Histogram(Collector):
    """Counts values by buckets, for each combination of labels.

    To be fed from one thread; it may be collected from any, and what it then shows is at
    most one value behind in its sum.

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
        self._children: dict[tuple[str, ...], _Child] = {}
        if not labels:
            self.of()
        registry.register(self)

    def of(self, *labels: str) -> "_Child":
        """Returns what counts under some labels."""
        child = self._children.get(labels)
        if child is None:
            child = self._children[labels] = _Child(self._bounds)
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


class _Child:
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
