"""What operators see: logs, Prometheus metrics, OpenTelemetry traces, the HTTP port."""
