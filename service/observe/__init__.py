"""Observability: logs, Prometheus metrics, OpenTelemetry traces, health probes."""
