"""Prometheus metrics, cheap by construction: children are bound once, histograms fed per batch."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_SECONDS = (
    0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
    30.0, 60.0,
)  # fmt: skip
_ROWS = tuple(2**power for power in range(11))
# Names that callers make up are not labels: no more than this many children are kept.
_MOST_CHILDREN = 1024
#: Encoded images that the figures of the latents are a mean over, the older the less.
HORIZON = 10_000.0


class Metrics:
    """All that the server counts, in a registry of its own. Safe to use from any thread."""

    def __init__(self) -> None:
        disable_created_metrics()  # twice the series, for what nobody asks
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        requests = Counter(
            "latentserve_requests",
            "Calls that have ended.",
            ["rpc", "model", "code"],
            registry=registry,
        )
        seconds = Histogram(
            "latentserve_request_seconds",
            "Seconds from a call's arrival to its end.",
            ["rpc"],
            buckets=_SECONDS,
            registry=registry,
        )
        compute = Histogram(
            "latentserve_compute_seconds",
            "Seconds that a batch took in a graph.",
            ["graph", "device"],
            buckets=_SECONDS,
            registry=registry,
        )
        rejected = Counter(
            "latentserve_rejected",
            "Calls that were refused, or whose rows were dropped uncomputed.",
            ["reason"],
            registry=registry,
        )
        self._request_count = lru_cache(_MOST_CHILDREN)(requests.labels)
        self._request_seconds = lru_cache(_MOST_CHILDREN)(seconds.labels)
        self._compute = lru_cache(_MOST_CHILDREN)(compute.labels)
        self._rejected = lru_cache(_MOST_CHILDREN)(rejected.labels)
        self._queue_seconds = Histogram(
            "latentserve_queue_seconds",
            "Seconds that rows waited until they began to be computed.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._batch_rows = Histogram(
            "latentserve_batch_rows", "Rows in a batch.", buckets=_ROWS, registry=registry
        )
        self._queue_rows = Gauge("latentserve_queue_rows", "Rows in flight.", registry=registry)
        self._queue_bytes = Gauge(
            "latentserve_queue_bytes", "Bytes of images and latents in flight.", registry=registry
        )
        self._info = Gauge(
            "latentserve_model_info",
            "1 for each model and version that is served.",
            ["model", "version", "device"],
            registry=registry,
        )
        self._refused = Gauge(
            "latentserve_model_refused",
            "1 where a version of the model that is wanted was refused.",
            ["model"],
            registry=registry,
        )
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
        self._request_count(rpc, model, code).inc()
        self._request_seconds(rpc).observe(seconds)

    def batch(self, graph: str, device: str, rows: int, seconds: float) -> None:
        """A batch has been computed."""
        self._compute(graph, device).observe(seconds)
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
        self._info.clear()
        for labels in models:
            self._info.labels(*labels).set(1)
        self._refused.clear()
        for name in {name for name, *_ in models} | set(refused):
            self._refused.labels(name).set(name in refused)
        self._latents.keep({(name, version) for name, version, _ in models})

    def encoded(
        self, model: str, version: str, mean: NDArray[np.float32], log_var: Any = None
    ) -> None:
        """Images have been encoded.

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


class _Moments:
    """Mean, second moment and KL of each latent dimension, the older the less."""

    def __init__(self, dim: int):
        self.weight = 0.0
        self.sums = np.zeros((3, dim))
        self.has_kl = False

    def add(self, mean: NDArray[np.float32], log_var: NDArray[np.float32] | None) -> None:
        rows = len(mean)
        wide = mean.astype(np.float64)
        fresh = np.zeros_like(self.sums)
        fresh[0], fresh[1] = wide.sum(axis=0), (wide * wide).sum(axis=0)
        if log_var is not None:
            v = log_var.astype(np.float64)
            fresh[2] = 0.5 * (wide * wide + np.exp(v) - 1.0 - v).sum(axis=0)
            self.has_kl = True
        memory = np.exp(-rows / HORIZON)
        self.weight = memory * self.weight + rows
        self.sums = memory * self.sums + fresh


class _Latents(Collector):
    """What has been encoded lately, against the prior N(0, I)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._served: set[tuple[str, str]] = set()
        self._moments: dict[tuple[str, str], _Moments] = {}

    def keep(self, served: set[tuple[str, str]]) -> None:
        with self._lock:
            self._served = served
            self._moments = {key: each for key, each in self._moments.items() if key in served}

    def add(
        self, key: tuple[str, str], mean: NDArray[np.float32], log_var: NDArray[np.float32] | None
    ) -> None:
        with self._lock:
            # A call in flight may still end on a version that is served no more.
            if key in self._served:
                moments = self._moments.setdefault(key, _Moments(mean.shape[1]))
                moments.add(mean, log_var)

    def collect(self) -> Iterator[Metric]:
        labels = ["model", "version", "dim"]
        families = [
            GaugeMetricFamily(f"latentserve_latent_{name}", text, labels=labels)
            for name, text in (
                ("mean", "Mean of the encoded means, over about the last 10,000 images."),
                ("variance", "Variance of the encoded means, likewise."),
                ("kl_nats", "KL of the posteriors to N(0, 1), likewise; near 0: not used."),
            )
        ]
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
