"""An OTLP collector that keeps the spans it gets."""

import concurrent.futures

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from tests.support.waiting import wait_until

#: A `traceparent`, and variables with which spans arrive soon.
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
FAST = {"OTEL_BSP_SCHEDULE_DELAY": "50"}


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """An OTLP collector that keeps the requests it gets."""

    def __init__(self):
        self.requests = []

    def Export(self, request, _context):  # noqa: N802
        self.requests.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()

    def spans(self):
        return [
            span
            for request in list(self.requests)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def wait_for(self, count):
        wait_until(lambda: len(self.spans()) >= count, self.spans)
        return self.spans()


def receive(port=0):
    """Starts a receiver; returns it and its gRPC server."""
    kept = Receiver()
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(kept, server)
    kept.port = server.add_insecure_port(f"127.0.0.1:{port}")
    kept.endpoint = f"http://127.0.0.1:{kept.port}"
    server.start()
    return kept, server


def attributes(span):
    return {
        pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in span.attributes
    }
