"""OpenTelemetry tracing; the SDK is imported only if there is an OTLP endpoint."""

import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from latentserve import __version__
from latentserve._client import proxy
from service.errors import StartError
from service.observe.spans import CallSpan, HttpSpan

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

_log = logging.getLogger(__name__)

_LATENT = "latentserve.v1.LatentService"
_SERVICES = {"Reload": "latentserve.v1.AdminService"} | dict.fromkeys(
    (
        "ModelConfig",
        "ModelInfer",
        "ModelMetadata",
        "ModelReady",
        "RepositoryIndex",
        "ServerMetadata",
    ),
    "inference.GRPCInferenceService",
)
_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_EXPORT_SECONDS = 5.0
# Time for the SDK to flush the spans, and again to give up; both are part of `EXIT_SECONDS`.
_FLUSH_SECONDS = 1.0


class Tracing:
    """Exports a span for each call; `OTEL_*` variables configure sampling and batching.

    Args:
        provider: Provider of the tracer.
        exporter: Exporter of the spans; if it hangs, `close` shuts it down.
    """

    def __init__(self, provider: "TracerProvider", exporter: "SpanExporter"):
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._exporter = exporter
        self._tracer = provider.get_tracer("latentserve", __version__)
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def start(cls, endpoint: str) -> "Tracing | None":
        """Starts tracing, or returns None if there is no endpoint.

        Args:
            endpoint: `http://HOST:4317`, or `https://` for TLS; empty for the endpoint in
                OpenTelemetry's own environment variables, if there is one.

        Raises:
            StartError: The endpoint or an `OTEL_*` variable is invalid.
        """
        if not endpoint and not any(os.environ.get(name) for name in _VARIABLES):
            return None
        if endpoint and not endpoint.startswith(("http://", "https://")):
            raise StartError(
                f"otlp-endpoint: got {endpoint!r}, wanted http://HOST:PORT or https://HOST:PORT"
            )
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        # The SDK logs every failed export; _ReportingExporter logs the first one.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        try:
            exporter = OTLPSpanExporter(
                endpoint=endpoint or None,
                timeout=_EXPORT_SECONDS,
                channel_options=_channel_options(endpoint),  # type: ignore[arg-type]
            )
            provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
            provider.add_span_processor(BatchSpanProcessor(_ReportingExporter(exporter)))  # type: ignore[arg-type]
        except Exception as error:
            raise StartError(f"otlp-endpoint, or an OTEL_ variable: {error}") from error
        return cls(provider, exporter)

    @contextmanager
    def call(self, rpc: str, metadata: Mapping[str, str]) -> Iterator["CallSpan"]:
        """Opens the span of a call, as a context manager.

        Args:
            rpc: Name of the RPC.
            metadata: Metadata of the call; `traceparent` makes the caller's span the parent.
        """
        from opentelemetry.trace import SpanKind

        service = _SERVICES.get(rpc, _LATENT)
        # Not set as the current span: it has no children, and a stream may end in a different
        # context than it began in.
        span = self._tracer.start_span(
            f"{service}/{rpc}",
            context=self._propagator.extract(metadata),
            kind=SpanKind.SERVER,
            attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": rpc},
        )
        call_span = CallSpan(span)
        try:
            yield call_span
        finally:
            call_span.end()

    def request(
        self, method: str, metadata: Mapping[str, str], attributes: Mapping[str, str | int]
    ) -> HttpSpan:
        """Opens the span of a request by HTTP, which its `end` closes.

        Args:
            method: Its method, which the span is named by until its route is known.
            metadata: Its headers; `traceparent` makes the caller's span the parent.
            attributes: What is known of it, by the names of OpenTelemetry's conventions.
        """
        from opentelemetry.trace import SpanKind

        span = self._tracer.start_span(
            method,
            context=self._propagator.extract(metadata),
            kind=SpanKind.SERVER,
            attributes=attributes,
        )
        return HttpSpan(span, method)

    def close(self) -> None:
        """Flushes the spans, for at most twice `_FLUSH_SECONDS`."""
        # The SDK waits without a limit for the exporter, which waits for the collector.
        closing = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        closing.start()
        closing.join(_FLUSH_SECONDS)
        if closing.is_alive():
            self._exporter.shutdown()
            closing.join(_FLUSH_SECONDS)


class _ReportingExporter:
    """An exporter that logs when exports begin to fail, and when they succeed again."""

    def __init__(self, exporter: "SpanExporter"):
        self._exporter = exporter
        self._failing = False

    def export(self, spans: Sequence["ReadableSpan"]) -> "SpanExportResult":
        from opentelemetry.sdk.trace.export import SpanExportResult

        try:
            result = self._exporter.export(spans)
        except Exception as error:  # noqa: BLE001 - the next export may succeed
            _log.debug("traces: %r", error)
            result = SpanExportResult.FAILURE
        failing = result is not SpanExportResult.SUCCESS
        if failing and not self._failing:
            _log.warning("traces: the OTLP endpoint accepts none; they are dropped until it does")
        elif self._failing and not failing:
            _log.info("traces: the OTLP endpoint accepts them again")
        self._failing = failing
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def _channel_options(endpoint: str) -> tuple[tuple[str, object], ...] | None:
    """Returns gRPC channel options: no proxy for a collector on this machine, else None."""
    given = endpoint or next(filter(None, map(os.environ.get, _VARIABLES)), "")
    return tuple(proxy.channel_arguments(urlsplit(given).netloc)) or None


def _resource() -> Any:
    """Returns the server's resource attributes, which OTEL_* variables override."""
    from opentelemetry.sdk.resources import Resource

    own = Resource(
        {
            "service.name": "latentserve",
            "service.version": __version__,
            # Distinguishes the workers.
            "process.pid": os.getpid(),
        }
    )
    # From OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES; the name has a default.
    configured = Resource.create()
    unnamed = str(configured.attributes["service.name"]).startswith("unknown_service")
    return configured.merge(own) if unnamed else own.merge(configured)
