"""OpenTelemetry traces, where an OTLP endpoint is set; else nothing of it is imported."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from latentserve import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

_SERVICE = "latentserve.v1.LatentService"
_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_FLUSH_MILLISECONDS = 2000


class Tracing:
    """Sends a span for each call; how it is sampled and batched, `OTEL_*` variables say.

    Args:
        provider: Makes and sends the spans.
    """

    def __init__(self, provider: "TracerProvider"):
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("latentserve", __version__)
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def start(cls, endpoint: str) -> "Tracing | None":
        """Begins to trace, or returns None where there is no endpoint.

        Args:
            endpoint: `http://HOST:4317`; empty for the one of OpenTelemetry's own
                variables, if there is any.
        """
        if not endpoint and not any(os.environ.get(name) for name in _VARIABLES):
            return None
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        # A collector that is away is no news every few seconds.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        attributes = {"service.version": __version__}
        if not os.environ.get("OTEL_SERVICE_NAME"):
            attributes["service.name"] = "latentserve"
        provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=endpoint or None, timeout=5)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        return cls(provider)

    @contextmanager
    def call(self, rpc: str, metadata: Mapping[str, str]) -> Iterator["CallSpan"]:
        """Entered while a call is answered.

        Args:
            rpc: Its name.
            metadata: Of the call; its `traceparent` names the caller's span.
        """
        from opentelemetry.trace import SpanKind

        with self._tracer.start_as_current_span(
            f"{_SERVICE}/{rpc}",
            context=self._propagator.extract(metadata),
            kind=SpanKind.SERVER,
            attributes={"rpc.system": "grpc", "rpc.service": _SERVICE, "rpc.method": rpc},
        ) as span:
            yield CallSpan(span)

    def close(self) -> None:
        """Sends what is left, for two seconds at most."""
        self._provider.force_flush(_FLUSH_MILLISECONDS)
        self._provider.shutdown()


class CallSpan:
    """The span of one call."""

    def __init__(self, span: "Span"):
        self._span = span

    def set(self, **attributes: Any) -> None:
        """Adds what is known of the call, each under `latentserve.`."""
        for name, value in attributes.items():
            self._span.set_attribute(f"latentserve.{name}", value)

    def failed(self, code: str, *, error: bool) -> None:
        """Tells how it failed.

        Args:
            code: The gRPC status code's name.
            error: Whether the server is to blame.
        """
        from opentelemetry.trace import Status, StatusCode

        self._span.set_attribute("rpc.grpc.status_code", code)
        if error:
            self._span.set_status(Status(StatusCode.ERROR, code))
