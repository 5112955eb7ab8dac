"""Prometheus metrics of the server, cheap to update: children are cached by label values."""

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

from service.observe.counters import Counter as CallCounter
from service.observe.counters import CounterChild, Histogram, HistogramChild

_SECONDS = (
    0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
    30.0, 60.0,
)  # fmt: skip
_ROWS = tuple(2**power for power in range(11))
_MAX_CHILDREN = 1024
#: Reasons why calls were refused, or their rows dropped.
REJECTIONS = (
    "overloaded", "caller_limit", "out_of_memory", "not_ready", "unauthenticated", "deadline",
    "cancelled",
)  # fmt: skip
# What `watch_open` can count.
_OPEN = {
    "connections": "Open connections to the gRPC port.",
    "streams": "Open HTTP/2 streams: calls whose replies are not sent yet, and health watches.",
    "calls": "Calls that are being answered.",
}
# Pending posteriors are accumulated once there are this many batches, or rows.
_PENDING_BATCHES, _PENDING_ROWS = 64, 1024
#: Reasons of failed TLS handshakes.
HANDSHAKE_REASONS = (
    "plaintext", "no_client_certificate", "client_certificate", "refused_by_client", "protocol",
    "timeout", "closed", "other",
)  # fmt: skip
#: Time constant of the latent statistics' exponential decay, in encoded images.
HORIZON = 10_000.0


class Metrics:
    """The server's metrics, in their own registry.

    Thread-safe, except for `request`, `caller`, `batch` and `queued`: only the event loop's
    thread may call those. Label values are names of models, methods, tokens and the like, never
    a caller's text, so the number of series is bounded.
    """

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the number of series
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._requests = CallCounter(
            "latentserve_requests", "Calls that have ended.", registry, ["rpc", "model", "code"]
        )
        # Cache of call counter and duration histogram, by RPC, model and status code.
        self._bound: dict[tuple[str, str, str], tuple[CounterChild, HistogramChild]] = {}
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
            "Calls that were refused, or whose rows were dropped before they were computed.",
            ["reason"],
            registry=registry,
        )
        self._rejected = lru_cache(_MAX_CHILDREN)(rejected.labels)
        for reason in REJECTIONS:
            # Start at 0: if a series appeared with its first increment, a rate would miss that.
            self._rejected(reason)
        self._queue_seconds = Histogram(
            "latentserve_queue_seconds",
            "Seconds that rows waited before their computation began.",
            _SECONDS,
            registry,
        ).child()
        self._batch_rows = Histogram(
            "latentserve_batch_rows", "Rows in a batch.", _ROWS, registry
        ).child()
        self._queue_rows = Gauge("latentserve_queue_rows", "Rows in flight.", registry=registry)
        self._queue_bytes = Gauge(
            "latentserve_queue_bytes", "Bytes of images and latents in flight.", registry=registry
        )
        self._handshake_failures: dict[str, Counter] = {}
        labels = ["caller"]
        self._caller_calls = CallCounter(
            "latentserve_caller_calls",
            "Calls that have ended, by the name of the caller's token.",
            registry,
            [*labels, "code"],
        )
        self._caller_rows = CallCounter(
            "latentserve_caller_rows",
            "Rows that calls asked for, by the name of the caller's token.",
            registry,
            labels,
        )
        self._models = _ModelInfo()
        registry.register(self._models)
        self._latents = _LatentStatistics()
        registry.register(self._latents)

    def request(self, rpc: str, model: str, code: str, seconds: float) -> None:
        """Counts a call that has ended.

        Args:
            rpc: Name of the RPC.
            model: Name of the model that answered; empty if none did.
            code: Name of the gRPC status code.
            seconds: Seconds from the call's arrival to its end.
        """
        labels = rpc, model, code
        bound = self._bound.get(labels)
        if bound is None:
            bound = self._requests.child(*labels), self._request_seconds.child(rpc)
            self._bound[labels] = bound
        count, histogram = bound
        count.value += 1
        histogram.observe(seconds)

    def batch(self, graph: str, device: str, rows: int, seconds: float) -> None:
        """Records a batch that has been computed.

        Args:
            graph: Name of the graph.
            device: The graph's device.
            rows: Rows in the batch.
            seconds: Seconds that the batch took.
        """
        self._compute.child(graph, device).observe(seconds)
        self._batch_rows.observe(rows)

    def queued(self, seconds: float) -> None:
        """Records how long a request waited until its first rows were dispatched."""
        self._queue_seconds.observe(seconds)

    def watch_queue(self, rows_and_bytes: Callable[[], tuple[int, int]]) -> None:
        """Sets the function that returns the rows and bytes in flight, called at each scrape."""
        self._queue_rows.set_function(lambda: rows_and_bytes()[0])
        self._queue_bytes.set_function(lambda: rows_and_bytes()[1])

    def watch_tls(self, expires_at: Callable[[], float]) -> None:
        """Adds the metrics of a server with TLS.

        Args:
            expires_at: Returns when the certificate expires, in seconds since 1970; called at
                each scrape.
        """
        Gauge(
            "latentserve_certificate_expiry_seconds",
            "When the certificate of the gRPC port expires, in seconds since 1970.",
            registry=self._registry,
        ).set_function(expires_at)
        failures = Counter(
            "latentserve_tls_handshake_failures",
            "TLS handshakes that failed.",
            ["reason"],
            registry=self._registry,
        )
        self._handshake_failures = {reason: failures.labels(reason) for reason in HANDSHAKE_REASONS}

    def handshake_failed(self, reason: str) -> None:
        """Counts a failed TLS handshake, by one of HANDSHAKE_REASONS, after `watch_tls`."""
        if reason in self._handshake_failures:
            self._handshake_failures[reason].inc()

    def limits(self, threads: int, max_queue_rows: int, max_queue_bytes: int) -> None:
        """Sets the metrics that show the server's limits.

        Args:
            threads: Number of compute threads.
            max_queue_rows: Maximum rows in flight.
            max_queue_bytes: Maximum bytes in flight.
        """
        for name, text, value in (
            ("threads", "Compute threads.", threads),
            ("max_queue_rows", "Maximum rows in flight.", max_queue_rows),
            ("max_queue_bytes", "Maximum bytes in flight.", max_queue_bytes),
        ):
            Gauge(f"latentserve_{name}", text, registry=self._registry).set(value)

    def watch_open(self, **counts: Callable[[], int]) -> None:
        """Adds the metrics of the transport's open connections, streams or calls.

        Args:
            counts: Functions that return the number of open `connections`, `streams` or `calls`, as
                far as the transport counts them; called at each scrape, in the scrape's thread.
        """
        for name, count in counts.items():
            gauge = Gauge(f"latentserve_{name}_open", _OPEN[name], registry=self._registry)
            gauge.set_function(count)

    def caller(self, name: str, code: str, rows: int) -> None:
        """Counts a call that has ended, and its rows, in the metrics of its caller.

        Args:
            name: Name of the caller's token.
            code: Name of the gRPC status code.
            rows: Rows of the call.
        """
        self._caller_calls.child(name, code).value += 1
        self._caller_rows.child(name).value += rows

    def rejected(self, reason: str) -> None:
        """Counts a call that was shed, refused or dropped, by reason."""
        self._rejected(reason).inc()

    def serving(self, models: Sequence[tuple[str, str, str]], refused: Iterable[str]) -> None:
        """Replaces the models that the metrics show as served.

        Args:
            models: Name, version and device of each model.
            refused: Names of models with a selected version that could not be loaded.
        """
        self._models.set(models, set(refused))
        self._latents.retain({(name, version) for name, version, _ in models})

    def encoded(
        self,
        model: str,
        version: str,
        mean: NDArray[np.float32],
        log_var: NDArray[np.float32] | None,
    ) -> None:
        """Adds the posteriors of encoded images to the latent statistics.

        A batch with a NaN or infinity is left out, since the sums would stay NaN or infinite.

        Args:
            model: Name of the model.
            version: Its version.
            mean: Posterior means, float32 [N, D].
            log_var: Posterior log-variances, float32 [N, D]; None for a plain autoencoder,
                which has no KL.
        """
        self._latents.add((model, version), mean, log_var)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Returns the metrics page and its content type.

        Args:
            accept: Accept header of the scrape, which chooses OpenMetrics or the text format.
        """
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


class _ModelInfo(Collector):
    """The models served and refused, replaced as one value: no scrape sees half of a reload."""

    def __init__(self) -> None:
        self._value: tuple[Sequence[tuple[str, str, str]], set[str]] = ((), set())

    def set(self, models: Sequence[tuple[str, str, str]], refused: set[str]) -> None:
        self._value = tuple(models), refused

    def collect(self) -> Iterator[Metric]:
        models, refused = self._value
        info = GaugeMetricFamily(
            "latentserve_model_info",
            "1 for each model and version that is served.",
            labels=["model", "version", "device"],
        )
        for labels in models:
            info.add_metric(labels, 1)
        yield info
        refusals = GaugeMetricFamily(
            "latentserve_model_refused",
            "1 if a wanted version of the model was refused, else 0.",
            labels=["model"],
        )
        for name in sorted(refused.union(name for name, *_ in models)):
            refusals.add_metric([name], name in refused)
        yield refusals


class _Moments:
    """Exponentially decayed sums over rows, for each latent dimension.

    Each row of a new batch has weight 1; a batch of n rows scales the weights of all earlier
    rows by exp(-n / HORIZON), so that the weights add up to about HORIZON.

    Args:
        dim: D, number of latent dimensions.

    Attributes:
        weight: Sum of the rows' weights.
        sums: Weighted sums of mean, squared mean and KL, float64 [3, D].
        has_kl: Whether the model has log-variances, and so a KL.
    """

    def __init__(self, dim: int):
        self.weight = 0.0
        self.sums = np.zeros((3, dim))
        self.has_kl = False

    def add(self, rows: int, sums: NDArray[np.float64], has_kl: bool) -> None:
        decay = np.exp(-rows / HORIZON)
        self.weight = decay * self.weight + rows
        self.sums = decay * self.sums + sums
        self.has_kl = has_kl


def _sums(mean: NDArray[np.float32], log_var: NDArray[np.float32] | None) -> NDArray[np.float64]:
    """Returns the sums over rows of mean, squared mean and KL to N(0, 1): float64 [3, D]."""
    wide = mean.astype(np.float64)
    first, second = wide.sum(axis=0), np.einsum("nd,nd->d", wide, wide)
    if log_var is None:
        return np.stack([first, second, np.zeros_like(first)])
    with np.errstate(over="ignore", invalid="ignore"):
        # exp in float32, which SIMD computes eight at a time; the sum in float64.
        variance_less_log = (np.exp(log_var) - log_var).sum(axis=0, dtype=np.float64)
        kl = 0.5 * (second - len(mean) + variance_less_log)
    return np.stack([first, second, kl])


_Posteriors = tuple[NDArray[np.float32], NDArray[np.float32] | None]


class _LatentStatistics(Collector):
    """Statistics of the posteriors of recent images, to be compared with the prior N(0, I).

    In a latent dimension that the model uses well, the posterior means have a mean near 0, and
    their variance plus the posteriors' mean variance is near 1, the variance of the prior. A
    dimension whose KL is near 0 is collapsed: its posterior is the prior for every image. Values
    that drift away from those of the training images show that the images have changed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._served: set[tuple[str, str]] = set()
        self._moments: dict[tuple[str, str], _Moments] = {}
        # Accumulated in bulk: some twenty NumPy calls are costly for one row, cheap for many.
        self._pending: dict[tuple[str, str], list[_Posteriors]] = {}

    def retain(self, served: set[tuple[str, str]]) -> None:
        """Keeps the statistics of the given models only, each as (name, version)."""
        with self._lock:
            self._served = served
            self._moments = {
                key: moments for key, moments in self._moments.items() if key in served
            }

    def add(
        self, key: tuple[str, str], mean: NDArray[np.float32], log_var: NDArray[np.float32] | None
    ) -> None:
        with self._lock:
            pending = self._pending.setdefault(key, [])
            pending.append((mean, log_var))
            rows = sum([len(batch_mean) for batch_mean, _ in pending])
            if len(pending) < _PENDING_BATCHES and rows < _PENDING_ROWS:
                return
            del self._pending[key]
        self._accumulate(key, pending)

    def _accumulate(self, key: tuple[str, str], pending: "list[_Posteriors]") -> None:
        # A model may have been replaced by one of the same name and version but other dimensions.
        for (dim, with_log_var), group in groupby(
            pending, lambda posteriors: (posteriors[0].shape[1], posteriors[1] is not None)
        ):
            means, log_vars = zip(*group, strict=True)
            mean = np.concatenate(means)
            sums = _sums(mean, np.concatenate(log_vars) if with_log_var else None)
            if len(mean) == 0 or not np.isfinite(sums).all():
                if len(means) > 1:
                    # Leave out only the batches that are not finite.
                    for posteriors in zip(means, log_vars, strict=True):
                        self._accumulate(key, [posteriors])
                continue
            with self._lock:
                # A call in flight may end on a version that is no longer served.
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
                (
                    "mean",
                    "Mean of the encoded means over about the last 10,000 images; ideally 0.",
                ),
                (
                    "variance",
                    "Variance of the encoded means over the same images; ideally 1 minus the "
                    "posteriors' mean variance.",
                ),
                (
                    "kl_nats",
                    "KL of the posteriors to N(0, 1) over the same images; near 0 if collapsed.",
                ),
            )
        ]
        with self._lock:
            pending, self._pending = self._pending, {}
        for key, batches in pending.items():
            self._accumulate(key, batches)
        with self._lock:
            averages = [
                (key, moments.sums / moments.weight, moments.has_kl)
                for key, moments in self._moments.items()
            ]
        for (model, version), (first, second, kl), has_kl in averages:
            statistics = [first, np.maximum(second - first**2, 0.0), kl]
            for family, values in zip(families, statistics[: 3 if has_kl else 2], strict=False):
                for dim, value in enumerate(values):
                    family.add_metric([model, version, str(dim)], float(value))
        yield from families
