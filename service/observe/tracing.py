"""OpenTelemetry traces, where an OTLP endpoint is set; else nothing of it is imported."""

import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from latentserve import __version__
from service.errors import StartError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
    from opentelemetry.trace import Span

_log = logging.getLogger(__name__)

_LATENT = "latentserve.v1.LatentService"
_SERVICES = {"Reload": "latentserve.v1.AdminService"}
_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_EXPORT_SECONDS = 5.0
_FLUSH_SECONDS = 2.0
# gRPC's numbers of its codes, by place.
_CODES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND",
    "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
    "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS",
    "UNAUTHENTICATED",
)  # fmt: skip


class Tracing:
    """Sends a span for each call; how it is sampled and batched, `OTEL_*` variables say.

    Args:
        provider: Makes the spans.
        exporter: Sends them.
    """

    def __init__(self, provider: "TracerProvider", exporter: "SpanExporter"):
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._exporter = exporter
        self._tracer = provider.get_tracer("latentserve", __version__)
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def start(cls, endpoint: str) -> "Tracing | None":
        """Begins to trace, or returns None where there is no endpoint.

        Args:
            endpoint: `http://HOST:4317`, or `https://` for TLS; empty for the one of
                OpenTelemetry's own variables, if there is any.

        Raises:
            StartError: The endpoint is none, or an `OTEL_*` variable is wrong.
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

        # A collector that is away is no news every few seconds: _Reported says it once.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        try:
            exporter = OTLPSpanExporter(endpoint=endpoint or None, timeout=_EXPORT_SECONDS)
            provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
            provider.add_span_processor(BatchSpanProcessor(_Reported(exporter)))  # type: ignore[arg-type]
        except Exception as error:
            raise StartError(f"otlp-endpoint, or an OTEL_ variable: {error}") from error
        return cls(provider, exporter)

    @contextmanager
    def call(self, rpc: str, metadata: Mapping[str, str]) -> Iterator["CallSpan"]:
        """Entered while a call is answered.

        Args:
            rpc: Its name.
            metadata: Of the call; its `traceparent` names the caller's span.
        """
        from opentelemetry.trace import SpanKind

        service = _SERVICES.get(rpc, _LATENT)
        # Not made the current one: it has no children, and a stream's end may run in a
        # context other than its beginning.
        span = self._tracer.start_span(
            f"{service}/{rpc}",
            context=self._propagator.extract(metadata),
            kind=SpanKind.SERVER,
            attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": rpc},
        )
        told = CallSpan(span)
        try:
            yield told
        finally:
            told.end()

    def close(self) -> None:
        """Sends what is left, for two seconds at most."""
        # The SDK would wait for the exporter, and that for its collector.
        closing = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        closing.start()
        closing.join(_FLUSH_SECONDS)
        if closing.is_alive():
            self._exporter.shutdown()
            closing.join(_FLUSH_SECONDS)


class CallSpan:
    """The span of one call."""

    def __init__(self, span: "Span"):
        self._span = span
        self._code = "OK"

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

        self._code = code
        if error:
            self._span.set_status(Status(StatusCode.ERROR, code))

    def end(self) -> None:
        """Ends it, with its code: the number, and the name that replaces it by and by."""
        self._span.set_attribute("rpc.grpc.status_code", _CODES.index(self._code))
        self._span.set_attribute("rpc.response.status_code", self._code)
        self._span.end()


class _Reported:
    """An exporter that says once that it fails, and once that it works again."""

    def __init__(self, exporter: "SpanExporter"):
        self._exporter = exporter
        self._failing = False

    def export(self, spans: Sequence["ReadableSpan"]) -> "SpanExportResult":
        from opentelemetry.sdk.trace.export import SpanExportResult

        try:
            result = self._exporter.export(spans)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next ones may pass
            _log.debug("traces: %r", error)
            result = SpanExportResult.FAILURE
        failing = result is not SpanExportResult.SUCCESS
        if failing and not self._failing:
            _log.warning("traces: the OTLP endpoint takes none; they are dropped until it does")
        elif self._failing and not failing:
            _log.info("traces: the OTLP endpoint takes them again")
        self._failing = failing
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def _resource() -> Any:
    """The server's name, version and process; an operator's, by either variable, win."""
    from opentelemetry.sdk.resources import Resource

    own = Resource(
        {
            "service.name": "latentserve",
            "service.version": __version__,
            # Workers are told apart by it.
            "process.pid": os.getpid(),
        }
    )
    given = Resource.create()
    unnamed = str(given.attributes["service.name"]).startswith("unknown_service")
    return given.merge(own) if unnamed else own.merge(given)
