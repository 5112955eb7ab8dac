"""Facade over metrics and tracing."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bundle import Manifest
from service.engine.call import Call
from service.errors import (
    NotReady,
    OutOfMemory,
    OverCallerLimit,
    Overloaded,
    ServiceError,
    Unauthenticated,
)
from service.models.onnx import Graph
from service.models.repository import Models
from service.observe.drift import ReconstructionErrors
from service.observe.metrics import Metrics
from service.observe.spans import CallSpan, HttpSpan
from service.observe.tracing import Tracing

# Errors that count as rejected calls, and their reason in the metrics.
_REJECTIONS: dict[type[ServiceError], str] = {
    Overloaded: "overloaded",
    OverCallerLimit: "caller_limit",
    OutOfMemory: "out_of_memory",
    NotReady: "not_ready",
    Unauthenticated: "unauthenticated",
}


class Span:
    """The trace span of a call; does nothing if tracing is off.

    Args:
        manager: Context manager of the span, entered here; None if tracing is off.
    """

    __slots__ = ("_manager", "_span")

    def __init__(self, manager: AbstractContextManager[CallSpan] | None):
        self._manager = manager
        self._span = None if manager is None else manager.__enter__()

    def failed(self, code: str, *, expected: bool) -> None:
        """Sets the status of a call that failed.

        Args:
            code: Name of the gRPC status code.
            expected: Whether the caller, not the server, is at fault.
        """
        if self._span is not None:
            self._span.failed(code, error=not expected)

    def ended(self, call: Call) -> None:
        """Sets the attributes of the call and ends the span."""
        if self._span is None or self._manager is None:
            return
        describe(self._span, call)
        # Without an exception: the status says how the call ended, and exceptions of the
        # transport are meaningless in a trace.
        self._manager.__exit__(None, None, None)


def describe(span: CallSpan | HttpSpan, call: Call) -> None:
    """Sets the attributes of a span that its call knows once it has been answered."""
    span.set(
        model=call.model,
        version=call.version,
        rows=call.rows,
        batch_rows=call.timing.batch_rows,
        queue_seconds=call.timing.queue,
        compute_seconds=call.timing.compute,
        request_id=call.request_id,
    )


#: Span of calls that are not traced.
NO_SPAN: Final = Span(None)


class Telemetry:
    """Passes the events of transport, servicer and engine on to metrics and traces.

    Args:
        metrics: Records the metrics.
        tracing: Exports the traces; None if tracing is off.
        batch_failed: Called with the graph and the error when a batch fails.
        errors: Measures the reconstruction error of encoded images; None for no measurement.
    """

    def __init__(
        self,
        metrics: Metrics,
        tracing: Tracing | None,
        batch_failed: Callable[[Graph, Exception], None],
        errors: ReconstructionErrors | None = None,
    ):
        self.batch_failed = batch_failed
        self._errors = errors
        self._metrics = metrics
        self._tracing = tracing

    def span(self, rpc: str, call: Call) -> Span:
        """Starts the span of a call."""
        if self._tracing is None:
            return NO_SPAN
        return Span(self._tracing.call(rpc, call.metadata))

    @property
    def traces(self) -> bool:
        """Whether tracing is on."""
        return self._tracing is not None

    def http_span(
        self, method: str, metadata: Mapping[str, str], attributes: Mapping[str, str | int]
    ) -> HttpSpan:
        """Starts the span of a request by HTTP, as `Tracing.request` does; tracing has to be on."""
        assert self._tracing is not None
        return self._tracing.request(method, metadata, attributes)

    def request(self, rpc: str, model: str, code: str, seconds: float, transport: str) -> None:
        """Records a finished call; `transport` is `grpc` or `http`."""
        self._metrics.request(rpc, model, code, seconds, transport)

    def routed(self, model: str, version: int, code: str, seconds: float) -> None:
        """Records a finished call whose version a route has chosen."""
        self._metrics.routed(model, str(version), code, seconds)

    def caller(self, name: str, code: str, rows: int) -> None:
        """Records a finished call in its caller's metrics; `name` is that of the caller's token."""
        self._metrics.caller(name, code, rows)

    def watch_open(self, transport: str, **counts: Callable[[], int]) -> None:
        """Adds the metrics of open `connections`, `streams` and `calls`, as far as given."""
        self._metrics.watch_open(transport, **counts)

    def refused(self, error: ServiceError) -> None:
        """Counts a refused call if the cause is overload, readiness or authentication."""
        if type(error) in _REJECTIONS:
            self._metrics.rejected(_REJECTIONS[type(error)])

    def handshake_failed(self, reason: str) -> None:
        """Counts a failed TLS handshake; `reason` is one of `metrics.HANDSHAKE_REASONS`."""
        self._metrics.handshake_failed(reason)

    def serving(self, models: Models) -> None:
        """Records the models that are served, after each reload."""
        if self._errors is not None:
            self._errors.retain(
                {(model.manifest.name, model.manifest.version): model for model in models}
            )
        self._metrics.serving(
            [
                (model.manifest.name, str(model.manifest.version), str(model.device))
                for model in models
            ],
            refused=sorted({refused.name for refused in models.refused}),
        )

    def batch_computed(self, graph: Graph, rows: int, seconds: float) -> None:
        """Records a batch that has been computed in `seconds`."""
        self._metrics.batch(graph.name, str(graph.device), rows, seconds)

    def requests_dequeued(self, seconds: Sequence[float]) -> None:
        """Records how long requests were queued until their first rows were dispatched."""
        self._metrics.queued(seconds)

    def request_dropped(self, reason: str) -> None:
        """Counts a request that is dropped incomplete; `reason` is `deadline` or `cancelled`."""
        self._metrics.rejected(reason)

    def encoded(
        self,
        manifest: Manifest,
        images: NDArray[np.float32],
        mean: NDArray[np.float32],
        log_var: NDArray[np.float32] | None,
        labels: NDArray[np.int64] | None = None,
    ) -> None:
        """Records images that have been encoded, and their posteriors; in a compute thread.

        Args:
            manifest: Manifest of the model.
            images: float32 [N, C, H, W].
            mean: Posterior means, float32 [N, D] or [N, c, h, w].
            log_var: Posterior log-variances of the same shape, or None.
            labels: Class of each image, int64 [N], if the model is conditional; else None.
        """
        self._metrics.encoded(manifest.name, str(manifest.version), mean, log_var)
        if self._errors is not None:
            self._errors.encoded((manifest.name, manifest.version), images, mean, labels)

    def stop_measuring(self) -> None:
        """Ends the measurement of reconstruction errors; what is under way ends early."""
        if self._errors is not None:
            self._errors.close()

    def close(self) -> None:
        """Flushes the traces."""
        if self._tracing is not None:
            self._tracing.close()
