"""Prometheus metrics of the server, cheap to update: children are cached by label values."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache

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
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.observe.counters import Counter as CallCounter
from service.observe.counters import CounterChild, Histogram, HistogramChild
from service.observe.formats import encoder_for
from service.observe.latents import LatentStatistics

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
    "connections": "Open connections to the port of the transport.",
    "streams": "Open HTTP/2 streams: calls whose replies are not sent yet, and health watches.",
    "calls": "Calls that are being answered.",
}
#: Reasons of failed TLS handshakes.
HANDSHAKE_REASONS = (
    "plaintext", "no_client_certificate", "client_certificate", "refused_by_client", "protocol",
    "timeout", "closed", "other",
)  # fmt: skip


class Metrics:
    """The server's metrics, in their own registry.

    Thread-safe, except for `request`, `routed`, `caller`, `batch` and `queued`: only the event
    loop's thread may call those. Label values are names of models, methods, tokens and the like,
    never a caller's text, so the number of series is bounded.
    """

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the number of series
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._requests = CallCounter(
            "latentserve_requests",
            "Calls that have ended.",
            registry,
            ["rpc", "model", "code", "transport"],
        )
        # Cache of call counter and duration histogram, by these labels.
        self._bound: dict[tuple[str, str, str, str], tuple[CounterChild, HistogramChild]] = {}
        self._request_seconds = Histogram(
            "latentserve_request_seconds",
            "Seconds from a call's arrival to its end.",
            _SECONDS,
            registry,
            ["rpc", "transport"],
        )
        self._routed = CallCounter(
            "latentserve_routed_requests",
            "Calls that have ended, of those whose version a route has chosen.",
            registry,
            ["model", "version", "code"],
        )
        self._routed_seconds = Histogram(
            "latentserve_routed_request_seconds",
            "Seconds from the arrival of such a call to its end.",
            _SECONDS,
            registry,
            ["model", "version"],
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
        self._open: dict[str, Gauge] = {}
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
        self._latents = LatentStatistics()
        registry.register(self._latents)

    def request(
        self, rpc: str, model: str, code: str, seconds: float, transport: str = "grpc"
    ) -> None:
        """Counts a call that has ended.

        Args:
            rpc: Name of the RPC.
            model: Name of the model that answered; empty if none did.
            code: Name of the gRPC status code.
            seconds: Seconds from the call's arrival to its end.
            transport: What it came by, `grpc` or `http`.
        """
        labels = rpc, model, code, transport
        bound = self._bound.get(labels)
        if bound is None:
            bound = self._requests.child(*labels), self._request_seconds.child(rpc, transport)
            self._bound[labels] = bound
        count, histogram = bound
        count.value += 1
        histogram.observe(seconds)

    def routed(self, model: str, version: str, code: str, seconds: float) -> None:
        """Counts a call that has ended, and whose version a route has chosen.

        Args:
            model: Name of the model.
            version: Its version.
            code: Name of the gRPC status code.
            seconds: Seconds from the call's arrival to its end.
        """
        self._routed.child(model, version, code).value += 1
        self._routed_seconds.child(model, version).observe(seconds)

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

    def queued(self, seconds: Sequence[float]) -> None:
        """Records how long requests waited until their first rows were dispatched."""
        self._queue_seconds.observe_all(seconds)

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

    def watch_polls(self) -> Callable[[], None]:
        """Adds the metric of a server that looks for new models by itself.

        Returns:
            Function that counts a look that failed.
        """
        failures = Counter(
            "latentserve_poll_failures",
            "Looks for new models that failed, for example because a store was out.",
            registry=self._registry,
        )
        return failures.inc

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

    def watch_open(self, transport: str = "grpc", **counts: Callable[[], int]) -> None:
        """Adds the metrics of a transport's open connections, streams or calls.

        Args:
            transport: `grpc` or `http`.
            counts: Functions that return the number of open `connections`, `streams` or `calls`, as
                far as the transport counts them; called at each scrape, in the scrape's thread.
        """
        for name, count in counts.items():
            gauge = self._open.get(name)
            if gauge is None:
                gauge = self._open[name] = Gauge(
                    f"latentserve_{name}_open", _OPEN[name], ["transport"], registry=self._registry
                )
            gauge.labels(transport).set_function(count)

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
            mean: Posterior means, float32 [N, D] or [N, c, h, w].
            log_var: Posterior log-variances, of the same shape; None for a plain autoencoder,
                which has no KL.
        """
        self._latents.add((model, version), mean, log_var)

    def add(self, collector: Collector) -> None:
        """Adds the metrics of a collector to the page."""
        self._registry.register(collector)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Returns the metrics page and its content type.

        Args:
            accept: Accept header of the scrape, which chooses OpenMetrics or the text format.
        """
        encode, content_type = encoder_for(accept)
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
