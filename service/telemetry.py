"""What the server tells of its work: metrics and traces, behind one small door."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.call import Call
from service.errors import ServiceError
from service.metrics import Metrics
from service.model import Model
from service.runtime import Graph
from service.store import Models
from service.tracing import Tracing

_REFUSALS = {
    "OVERLOADED": "overloaded",
    "NOT_READY": "not_ready",
    "UNAUTHENTICATED": "unauthenticated",
}


class Span:
    """One call in a trace, or nothing where no trace is kept."""

    def __init__(self, span: AbstractContextManager[Any]):
        self._manager = span
        self._span: Any = None

    def __enter__(self) -> "Span":
        self._span = self._manager.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # The code tells how it ended; grpcio's own exceptions mean nothing in a trace.
        self._manager.__exit__(None, None, None)

    def failed(self, code: str, *, expected: bool) -> None:
        """Tells how it failed.

        Args:
            code: The status code.
            expected: Whether the caller and not the server is to blame.
        """
        if self._span is not None:
            self._span.failed(code, error=not expected)

    def told(self, call: Call) -> None:
        """Tells what is known of it in the end."""
        if self._span is not None:
            self._span.set(
                model=call.model,
                version=call.version,
                rows=call.rows,
                batch_rows=call.timing.batch_rows,
                queue_seconds=call.timing.queue,
                compute_seconds=call.timing.compute,
                request_id=call.request_id,
            )


class Telemetry:
    """Receives what happens and passes it on.

    Args:
        metrics: Counts.
        tracing: Keeps traces; None for none.
        failed: Called with a graph that failed on a batch, and why.
    """

    def __init__(
        self,
        metrics: Metrics,
        tracing: Tracing | None,
        failed: Callable[[Graph, Exception], None],
    ):
        self.failed = failed
        self._metrics = metrics
        self._tracing = tracing

    def span(self, rpc: str, call: Call) -> Span:
        """Returns the span of a call, to be entered while it is answered."""
        if self._tracing is None:
            return Span(nullcontext())
        return Span(self._tracing.call(rpc, call.metadata))

    def request(self, rpc: str, model: str, code: str, seconds: float) -> None:
        """A call has ended."""
        self._metrics.request(rpc, model, code, seconds)

    def refused(self, error: ServiceError) -> None:
        """A call was refused."""
        if error.reason in _REFUSALS:
            self._metrics.rejected(_REFUSALS[error.reason])

    def serving(self, models: Models) -> None:
        """Other models are being served."""
        self._metrics.serving(
            [
                (model.manifest.name, str(model.manifest.version), str(model.device))
                for model in models
            ],
            refused=sorted({each.name for each in models.refused}),
        )

    def batch(self, graph: Graph, rows: int, seconds: float) -> None:
        """A batch has been computed."""
        self._metrics.batch(graph.name, str(graph.device), rows, seconds)

    def queued(self, seconds: float) -> None:
        """A call's first rows began to be computed after so long."""
        self._metrics.queued(seconds)

    def dropped(self, reason: str) -> None:
        """A call's rows will not be computed."""
        self._metrics.rejected(reason)

    def encoded(
        self, model: Model, mean: NDArray[np.float32], log_var: NDArray[np.float32] | None
    ) -> None:
        """Images have been encoded."""
        manifest = model.manifest
        self._metrics.encoded(manifest.name, str(manifest.version), mean, log_var)

    def close(self) -> None:
        """Sends what is left of the traces."""
        if self._tracing is not None:
            self._tracing.close()
