"""Prometheus metrics, cheap by construction: children are bound once, histograms fed per batch."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.observe.counters import Child, Count, Histogram
from service.observe.counters import Counter as CallCounter

_SECONDS = (
    0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
    30.0, 60.0,
)  # fmt: skip
_ROWS = tuple(2**power for power in range(11))
# Bound once and kept. Labels are names of ours and of models, none that a caller made up.
_MOST_CHILDREN = 1024
# Batches, or rows, that are added up at a time.
_PENDING_BATCHES, _PENDING_ROWS = 64, 1024
#: Encoded images that the figures of the latents are a mean over, the older the less.
HORIZON = 10_000.0


class Metrics:
    """All that the server counts, in a registry of its own.

    Safe to use from any thread, but for `request`, `batch` and `queued`: they are called in
    the loop alone.
    """

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # twice the series, for what nobody asks
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._requests = CallCounter(
            "latentserve_requests", "Calls that have ended.", registry, ["rpc", "model", "code"]
        )
        # By rpc, model and code: what counts a call, and its seconds. Labels are names of ours
        # and of models, none that a caller made up.
        self._ended: dict[tuple[str, str, str], tuple[Count, Child]] = {}
        self._request_seconds = Histogram(
            "latentserve_request_seconds",
            "Seconds from a call's arrival to its end.",
            _SECONDS,
            registry,
            ["rpc"],
        )
        self._compute = Histogram(
            "latentserve_compute_seconds",
            "Seconds that a batch took in a graph.",
            _SECONDS,
            registry,
            ["graph", "device"],
        )
        rejected = Counter(
            "latentserve_rejected",
            "Calls that were refused, or whose rows were dropped uncomputed.",
            ["reason"],
            registry=registry,
        )
        self._rejected = lru_cache(_MOST_CHILDREN)(rejected.labels)
        self._queue_seconds = Histogram(
            "latentserve_queue_seconds",
            "Seconds that rows waited until they began to be computed.",
            _SECONDS,
            registry,
        ).of()
        self._batch_rows = Histogram(
            "latentserve_batch_rows", "Rows in a batch.", _ROWS, registry
        ).of()
        self._queue_rows = Gauge("latentserve_queue_rows", "Rows in flight.", registry=registry)
        self._queue_bytes = Gauge(
            "latentserve_queue_bytes", "Bytes of images and latents in flight.", registry=registry
        )
        self._served = _Served()
        registry.register(self._served)
        self._latents = _Latents()
        registry.register(self._latents)

    def request(self, rpc: str, model: str, code: str, seconds: float) -> None:
        """A call has ended.

        Args:
            rpc: Its name, one of those there are.
            model: A model that is served, or empty.
            code: The gRPC status code's name.
            seconds: How long it took.
        """
        labels = rpc, model, code
        ended = self._ended.get(labels)
        if ended is None:
            ended = self._requests.of(*labels), self._request_seconds.of(rpc)
            self._ended[labels] = ended
        count, histogram = ended
        count.value += 1
        histogram.observe(seconds)

    def batch(self, graph: str, device: str, rows: int, seconds: float) -> None:
        """A batch has been computed."""
        self._compute.of(graph, device).observe(seconds)
        self._batch_rows.observe(rows)

    def queued(self, seconds: float) -> None:
        """Rows waited so long."""
        self._queue_seconds.observe(seconds)

    def watch_queue(self, rows_and_bytes: Callable[[], tuple[int, int]]) -> None:
        """Takes what tells, whenever it is asked, the rows and bytes in flight."""
        self._queue_rows.set_function(lambda: rows_and_bytes()[0])
        self._queue_bytes.set_function(lambda: rows_and_bytes()[1])

    def rejected(self, reason: str) -> None:
        """A call was refused, or its rows dropped."""
        self._rejected(reason).inc()

    def serving(self, models: Sequence[tuple[str, str, str]], refused: Iterable[str]) -> None:
        """Tells what is served now; what was before is told no more.

        Args:
            models: Name, version and device of each.
            refused: Names of models of which a version that is wanted was refused.
        """
        self._served.show(models, set(refused))
        self._latents.keep({(name, version) for name, version, _ in models})

    def encoded(
        self,
        model: str,
        version: str,
        mean: NDArray[np.float32],
        log_var: NDArray[np.float32] | None,
    ) -> None:
        """Images have been encoded.

        A batch with a value that is not finite is left out: it would never be forgotten.

        Args:
            model: By which model.
            version: And which version.
            mean: float32 [N, D].
            log_var: float32 [N, D], or None for a plain autoencoder, which has no KL.
        """
        self._latents.add((model, version), mean, log_var)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Returns what Prometheus reads, and its content type.

        Args:
            accept: The Accept header: OpenMetrics or the older text format.
        """
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


class _Served(Collector):
    """What is served: one value, swapped as a whole, so that no scrape sees half of a reload."""

    def __init__(self) -> None:
        self._shown: tuple[Sequence[tuple[str, str, str]], set[str]] = ((), set())

    def show(self, models: Sequence[tuple[str, str, str]], refused: set[str]) -> None:
        self._shown = tuple(models), refused

    def collect(self) -> Iterator[Metric]:
        models, refused = self._shown
        info = GaugeMetricFamily(
            "latentserve_model_info",
            "1 for each model and version that is served.",
            labels=["model", "version", "device"],
        )
        for labels in models:
            info.add_metric(labels, 1)
        yield info
        bad = GaugeMetricFamily(
            "latentserve_model_refused",
            "1 where a version of the model that is wanted was refused.",
            labels=["model"],
        )
        for name in sorted(refused.union(name for name, *_ in models)):
            bad.add_metric([name], name in refused)
        yield bad


class _Moments:
    """Mean, second moment and KL of each latent dimension, the older the less.

    A batch of n rows counts in full, and what was before it exp(-n / HORIZON) as much:
    the weights of all rows that ever were add up to about HORIZON.
    """

    def __init__(self, dim: int):
        self.weight = 0.0
        self.sums = np.zeros((3, dim))
        self.has_kl = False

    def add(self, rows: int, sums: NDArray[np.float64], has_kl: bool) -> None:
        memory = np.exp(-rows / HORIZON)
        self.weight = memory * self.weight + rows
        self.sums = memory * self.sums + sums
        self.has_kl = has_kl


def _sums(mean: NDArray[np.float32], log_var: NDArray[np.float32] | None) -> NDArray[np.float64]:
    """Sums over the rows of mean, its square and KL: float64 [3, D]."""
    wide = mean.astype(np.float64)
    first, second = wide.sum(axis=0), np.einsum("nd,nd->d", wide, wide)
    if log_var is None:
        return np.stack([first, second, np.zeros_like(first)])
    with np.errstate(over="ignore", invalid="ignore"):
        # In float32, of which CPUs do eight at a time; what is added up is wide.
        variance_less_log = (np.exp(log_var) - log_var).sum(axis=0, dtype=np.float64)
        kl = 0.5 * (second - len(mean) + variance_less_log)
    return np.stack([first, second, kl])


_Posteriors = tuple[NDArray[np.float32], NDArray[np.float32] | None]


class _Latents(Collector):
    """What has been encoded lately, against the prior N(0, I).

    A dimension in good use has a mean near 0 and a variance near 1 less the mean variance
    of its posteriors: the two add up to that of the prior. One whose KL is near 0 is dead:
    its posterior is the prior whatever the image. Figures that leave what they were on the
    training images tell that the images have changed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._served: set[tuple[str, str]] = set()
        self._moments: dict[tuple[str, str], _Moments] = {}
        # Rows not yet added up: twenty NumPy calls are much for one row, and little for many.
        self._pending: dict[tuple[str, str], list[_Posteriors]] = {}

    def keep(self, served: set[tuple[str, str]]) -> None:
        with self._lock:
            self._served = served
            self._moments = {key: each for key, each in self._moments.items() if key in served}

    def add(
        self, key: tuple[str, str], mean: NDArray[np.float32], log_var: NDArray[np.float32] | None
    ) -> None:
        with self._lock:
            pending = self._pending.setdefault(key, [])
            pending.append((mean, log_var))
            rows = sum([len(each) for each, _ in pending])
            if len(pending) < _PENDING_BATCHES and rows < _PENDING_ROWS:
                return
            del self._pending[key]
        self._add_up(key, pending)

    def _add_up(self, key: tuple[str, str], pending: "list[_Posteriors]") -> None:
        # Those of one name may be of two models, one of which came after the other.
        for (dim, with_log_var), group in groupby(
            pending, lambda each: (each[0].shape[1], each[1] is not None)
        ):
            means, log_vars = zip(*group, strict=True)
            mean = np.concatenate(means)
            sums = _sums(mean, np.concatenate(log_vars) if with_log_var else None)
            if len(mean) == 0 or not np.isfinite(sums).all():
                if len(means) > 1:
                    # Leave out the rows that are not finite, and no others.
                    for each in zip(means, log_vars, strict=True):
                        self._add_up(key, [each])
                continue
            with self._lock:
                # A call in flight may still end on a version that is served no more.
                if key in self._served:
                    moments = self._moments.get(key)
                    if moments is None or moments.sums.shape != sums.shape:
                        moments = self._moments[key] = _Moments(dim)
                    moments.add(len(mean), sums, with_log_var)

    def collect(self) -> Iterator[Metric]:
        labels = ["model", "version", "dim"]
        families = [
            GaugeMetricFamily(f"latentserve_latent_{name}", text, labels=labels)
            for name, text in (
                ("mean", "Mean of the encoded means, over about the last 10,000 images; well: 0."),
                (
                    "variance",
                    "Variance of the encoded means, likewise; well: 1 less the posteriors' mean "
                    "variance.",
                ),
                ("kl_nats", "KL of the posteriors to N(0, 1), likewise; near 0: not used."),
            )
        ]
        with self._lock:
            pending, self._pending = self._pending, {}
        for key, each in pending.items():
            self._add_up(key, each)
        with self._lock:
            seen = [
                (key, each.sums / each.weight, each.has_kl) for key, each in self._moments.items()
            ]
        for (model, version), (first, second, kl), has_kl in seen:
            figures = [first, np.maximum(second - first**2, 0.0), kl]
            for family, values in zip(families, figures[: 3 if has_kl else 2], strict=False):
                for dim, value in enumerate(values):
                    family.add_metric([model, version, str(dim)], float(value))
        yield from families
