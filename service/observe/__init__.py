"""What operators see: logs, Prometheus metrics, OpenTelemetry traces, health probes."""
