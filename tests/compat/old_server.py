"""A server of the protos of 0.1.0.

Its stubs are those in the wheel, which must come first on the path. So its replies have only fields
that those protos have, and of a request it reads only such fields:

    PYTHONPATH=tests/compat/latentserve-0.1.0-py3-none-any.whl python tests/compat/old_server.py

It serves the models that tests/compat/calls.py describes; with `--busy` it is the busy server.
"""

import concurrent.futures
import sys
from collections.abc import Callable, Iterator
from typing import Any

import google.protobuf.any_pb2
import grpc
from old_answers import Answers, Refused

import latentserve
from latentserve.compat.v1 import compat_pb2
from latentserve.v1 import admin_service_pb2_grpc, latent_service_pb2_grpc

assert latentserve.__version__ == "0.1.0", latentserve.__file__

TOKEN = "Bearer secret-of-many-characters"


def end(context: Any, refused: Refused) -> None:
    """Aborts the call with google.rpc details and, if there is one, the retry delay."""
    internal = refused.code == grpc.StatusCode.INTERNAL
    status = compat_pb2.RpcStatus(code=refused.code.value[0], message=str(refused))
    details: list[tuple[str, Any]] = [
        ("ErrorInfo", compat_pb2.RpcErrorInfo(
            reason=refused.reason, domain="latentserve",
            metadata={"request_id": "0badcafe"} if internal else {},
        ))
    ]  # fmt: skip
    if refused.violation:
        field, description = refused.violation
        violation = compat_pb2.RpcBadRequest.FieldViolation(field=field, description=description)
        details.append(("BadRequest", compat_pb2.RpcBadRequest(field_violations=[violation])))
    for name, message in details:
        status.details.append(
            google.protobuf.any_pb2.Any(
                type_url=f"type.googleapis.com/google.rpc.{name}",
                value=message.SerializeToString(),
            )
        )
    trailers: list[tuple[str, str | bytes]] = [
        ("grpc-status-details-bin", status.SerializeToString())
    ]
    if refused.pushback_ms is not None:
        trailers.append(("grpc-retry-pushback-ms", str(refused.pushback_ms)))
    context.set_trailing_metadata(trailers)
    context.abort(refused.code, str(refused))


class Servicer:
    """Both services: gRPC's method names, authentication, and errors with their details."""

    def __init__(self, answers: Answers):
        self._answers = answers

    def __getattr__(self, name: str) -> Callable[..., Any]:
        answer = getattr(self._answers, _snake(name))

        def unary(request: Any, context: Any) -> Any:
            try:
                _check_token(context)
                return answer(request)
            except Refused as refused:
                end(context, refused)

        def stream(request: Any, context: Any) -> Iterator[Any]:
            try:
                _check_token(context)
                yield from answer(request)
            except Refused as refused:
                end(context, refused)

        return stream if name.endswith("Stream") else unary


def _snake(name: str) -> str:
    return "".join(f"_{char.lower()}" if char.isupper() else char for char in name).lstrip("_")


def _check_token(context: Any) -> None:
    if dict(context.invocation_metadata()).get("authorization") != TOKEN:
        raise Refused(grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", "no or a wrong token")


def _health(request: compat_pb2.HealthRequest, context: Any) -> Any:
    _, _, model = request.service.partition("/")
    if model not in ("", "delta", "fragile", "gmm"):
        context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service}")
    return compat_pb2.HealthResponse(status=compat_pb2.HealthResponse.SERVING_STATUS_SERVING)


def main() -> None:
    """Serves until its standard input ends."""
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(16))
    servicer: Any = Servicer(Answers(busy="--busy" in sys.argv))
    latent_service_pb2_grpc.add_LatentServiceServicer_to_server(servicer, server)
    admin_service_pb2_grpc.add_AdminServiceServicer_to_server(servicer, server)
    check = grpc.unary_unary_rpc_method_handler(
        _health,
        request_deserializer=compat_pb2.HealthRequest.FromString,
        response_serializer=compat_pb2.HealthResponse.SerializeToString,
    )
    health = grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": check})
    server.add_generic_rpc_handlers((health,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"listening on 127.0.0.1:{port}", flush=True)
    sys.stdin.read()
    server.stop(0).wait()


if __name__ == "__main__":
    main()
