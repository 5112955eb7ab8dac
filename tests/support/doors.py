"""The doors of a server: a request of LatentService, made through each, and how it fails there."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

import grpc
from google.protobuf import json_format
from google.rpc import error_details_pb2, status_pb2

from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import tensor_pb2
from service.api.inference import inference_service_pb2
from tests.support.http import Caller

#: HTTP status of each gRPC status; RESOURCE_EXHAUSTED is 413 for what is too large.
HTTP_STATUSES = {
    "CANCELLED": 499,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "FAILED_PRECONDITION": 409,
    "INTERNAL": 500,
    "RESOURCE_EXHAUSTED": 429,
    "UNAVAILABLE": 503,
    "UNAUTHENTICATED": 401,
}
_SECONDS = 60.0
_TOO_LARGE = "MESSAGE_TOO_LARGE"
_OPERATIONS = {"Encode", "Decode", "Sample", "Reconstruct", "Score"}
_DTYPES = {
    tensor_pb2.DATA_TYPE_FLOAT32: ("FP32", "float32"),
    tensor_pb2.DATA_TYPE_FLOAT16: ("FP16", "float16"),
    tensor_pb2.DATA_TYPE_UINT8: ("UINT8", "uint8"),
}


#: Path, body (None for a GET) and headers of a request by HTTP.
Made = tuple[str, bytes | None, dict[str, str]]


@dataclass(frozen=True)
class Failure:
    """How a call failed.

    Attributes:
        code: Name of the gRPC status.
        message: What its caller is told. It names fields as LatentService does, and so do `fields`.
        reason: The machine-readable reason.
        fields: The invalid fields, each with its description.
        index: Index of the invalid row, if that is told.
        retry: Whether a time to wait is told.
    """

    code: str
    message: str
    reason: str
    fields: tuple[tuple[str, str], ...] = ()
    index: int | None = None
    retry: bool = False


class Grpc:
    """LatentService by gRPC.

    Args:
        target: Address of the server.

    Attributes:
        rpc: Name of the method that answers, if it is always the same.
        transport: As in the metrics.
        speaks: The names that errors have here: `native`, `inference` or `diffusers`.
    """

    rpc = ""
    transport = "grpc"
    speaks = "native"

    def __init__(self, target: str):
        self._target = target

    def fail(self, method: str, request: Any, headers: Mapping[str, str]) -> Failure | None:
        """How a call fails; None if this door cannot express it."""
        made = self._made(method, request)
        if made is None:
            return None
        with self._call(*made, headers) as call:
            try:
                call.result()
            except grpc.RpcError as error:
                return _renamed(_of_grpc(error), self.speaks, method)
        raise AssertionError(f"{method} did not fail")

    @contextmanager
    def begun(self, method: str, request: Any, headers: Mapping[str, str]) -> Iterator[None]:
        """A call that is left at the end of the block."""
        made = self._made(method, request)
        assert made is not None
        with self._call(*made, headers) as call:
            yield
            call.cancel()

    @contextmanager
    def _call(self, path: str, request: Any, headers: Mapping[str, str]) -> Iterator[Any]:
        options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(self._target, options=options) as channel:
            method = channel.unary_unary(
                path, request_serializer=type(request).SerializeToString, response_deserializer=None
            )
            yield method.future(request, timeout=_SECONDS, metadata=tuple(headers.items()))

    def _made(self, method: str, request: Any) -> tuple[str, Any] | None:
        return f"/latentserve.v1.LatentService/{method}", request


class GrpcInference(Grpc):
    """The Open Inference Protocol by gRPC."""

    rpc = "ModelInfer"
    speaks = "inference"

    def _made(self, method: str, request: Any) -> tuple[str, Any] | None:
        inferred = infer_request(method, request)
        path = "/inference.GRPCInferenceService/ModelInfer"
        return None if inferred is None else (path, inferred)


class Http:
    """LatentService at `/v1`, with requests in protobuf's JSON.

    Args:
        origin: Address of the gateway.

    Attributes:
        rpc, transport, speaks: As for `Grpc`.
    """

    rpc = ""
    transport = "http"
    speaks = "native"

    def __init__(self, origin: str):
        self._caller = Caller(origin)

    def fail(self, method: str, request: Any, headers: Mapping[str, str]) -> Failure | None:
        """How a call fails; None if this door cannot express it."""
        made = self._made(method, request)
        if made is None:
            return None
        path, body, more = made
        verb = "GET" if body is None else "POST"
        reply = self._caller.ask(verb, path, body, {**more, **headers})
        assert reply.media == "application/problem+json", reply
        problem = reply.json()
        failure = Failure(
            problem["code"],
            problem["detail"],
            problem["title"],
            tuple((error["field"], error["description"]) for error in problem.get("errors", ())),
            problem.get("index"),
            "retry_seconds" in problem,
        )
        wanted = 413 if failure.reason == _TOO_LARGE else HTTP_STATUSES[failure.code]
        assert reply.status == problem["status"] == wanted, reply
        assert ("retry-after" in reply.headers) == (wanted in (429, 503)), reply
        # Where clients of the Open Inference Protocol look for it.
        assert problem.get("error") == (failure.message if self.rpc else None)
        return _renamed(failure, self.speaks, method)

    @contextmanager
    def begun(self, method: str, request: Any, headers: Mapping[str, str]) -> Iterator[None]:
        """A call that is left at the end of the block."""
        made = self._made(method, request)
        assert made is not None
        path, body, more = made
        with closing(self._caller.connect()) as connection:
            connection.request("POST", path, body, {**more, **headers})
            yield

    def _made(self, method: str, request: Any) -> Made | None:
        path = "/v1/models/" + _path_of(request.model)
        if method == "GetModel":
            return path, None, {}
        if method == "GetLatentMap":
            return f"{path}:latent_map", None, {}
        told = json_format.MessageToDict(request)
        told.pop("model", None)
        return f"{path}:{method.lower()}", json.dumps(told).encode(), _JSON


class HttpInference(Http):
    """The Open Inference Protocol at `/v2`, with binary tensor data."""

    rpc = "ModelInfer"
    speaks = "inference"

    def _made(self, method: str, request: Any) -> Made | None:
        inferred = infer_request(method, request)
        if inferred is None:
            return None
        inputs = [
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": list(tensor.shape),
                "parameters": {"binary_data_size": len(raw)},
            }
            for tensor, raw in zip(inferred.inputs, inferred.raw_input_contents, strict=True)
        ]
        parameters = {name: _value(value) for name, value in inferred.parameters.items()}
        head = json.dumps({"inputs": inputs, "parameters": parameters}).encode()
        path = f"/v2/models/{quote(inferred.model_name)}"
        if inferred.model_version:
            path += f"/versions/{inferred.model_version}"
        more = {"inference-header-content-length": str(len(head))}
        return f"{path}/infer", head + b"".join(inferred.raw_input_contents), more


class Diffusers(Http):
    """The remote VAE of diffusers: Decode and Encode of tensors."""

    speaks = "diffusers"

    def _made(self, method: str, request: Any) -> Made | None:
        if method not in ("Encode", "Decode"):
            return None
        tensor = request.latents if method == "Decode" else request.images.tensor
        # A scaling is another thing there, and other fields have no parameters.
        named = {field.name for field, _ in request.ListFields()}
        own = {"model", "latents", "images", "labels", "draw", "seed", "offset", "quality"}
        if tensor.dtype not in _DTYPES or not named <= own:
            return None
        query = [f"shape={size}" for size in tensor.shape]
        query += [f"dtype={_DTYPES[tensor.dtype][1]}", *(f"labels={one}" for one in request.labels)]
        query += [
            f"{field.name}={int(value)}"
            for field, value in request.ListFields()
            if field.name in ("draw", "seed", "offset", "quality")
        ]
        if method == "Decode":
            query.append("output_type=pt")
        path = f"/diffusers/{_path_of(request.model)}/{method.lower()}?{'&'.join(query)}"
        return path, tensor.data, {"content-type": "tensor/binary"}


_JSON = {"content-type": "application/json"}


def _path_of(model: pb.ModelSelector) -> str:
    return model.name + (f"/versions/{model.version}" if model.version else "")


def infer_request(method: str, request: Any) -> inference_service_pb2.ModelInferRequest | None:
    """A request of LatentService as one of the Open Inference Protocol, if it has it."""
    if method not in _OPERATIONS:
        return None
    inferred = inference_service_pb2.ModelInferRequest(
        model_name=f"{request.model.name}.{method.lower()}",
        model_version=str(request.model.version or ""),
    )
    for field, value in request.ListFields():
        if field.name in ("latents", "images"):
            tensor = value if field.name == "latents" else value.tensor
            if tensor.dtype not in _DTYPES:
                return None
            name = "z" if field.name == "latents" else "image"
            datatype = _DTYPES[tensor.dtype][0]
            inferred.inputs.add(name=name, datatype=datatype, shape=tensor.shape)
            inferred.raw_input_contents.append(tensor.data)
        elif field.name == "labels":
            inferred.inputs.add(name="label", datatype="INT64", shape=[len(value)])
            content = b"".join(one.to_bytes(8, "little", signed=True) for one in value)
            inferred.raw_input_contents.append(content)
        elif field.name != "model":
            _put(inferred.parameters[field.name], value)
    return inferred


def _renamed(failure: Failure, speaks: str, method: str) -> Failure:
    """A failure whose fields have the names of LatentService."""
    main = "latents" if method == "Decode" else "images.tensor"
    renamed = {"native": {}, "inference": _INFERENCE, "diffusers": _DIFFUSERS}[speaks]

    def native(name: str) -> str:
        for pattern, wanted in renamed.items():
            name = re.sub(pattern, wanted.replace("MAIN", main), name)
        return name

    name, colon, rest = failure.message.partition(": ")
    fields = tuple((native(field), description) for field, description in failure.fields)
    return replace(failure, message=f"{native(name)}{colon}{rest}", fields=fields)


# Names of fields at the other doors, and those of LatentService.
_INFERENCE = {
    r"^inputs\.(z|image)\b": "MAIN",
    r"^inputs\.label\b": "labels",
    r"^(inputs|parameters)\.": "",
    r"\.datatype$": ".dtype",
    r"^model_": "model.",
}
_DIFFUSERS = {"^(shape|dtype)$": r"MAIN.\1", "^body$": "MAIN.data"}


def _put(parameter: Any, value: Any) -> None:
    kind = {bool: "bool_param", int: "int64_param", float: "double_param"}[type(value)]
    if kind == "int64_param" and value >= 2**63:
        kind = "uint64_param"
    setattr(parameter, kind, value)


def _value(parameter: Any) -> Any:
    return getattr(parameter, parameter.WhichOneof("parameter_choice"))


def _of_grpc(error: Any) -> Failure:
    trailers = dict(error.trailing_metadata())
    raw = trailers.get("grpc-status-details-bin")
    reason, index, retry = "", None, False
    fields: tuple[tuple[str, str], ...] = ()
    for packed in status_pb2.Status.FromString(raw).details if raw else ():
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if packed.Unpack(info):
            reason = info.reason
            index = int(info.metadata["index"]) if "index" in info.metadata else None
        elif packed.Unpack(bad):
            fields = tuple((one.field, one.description) for one in bad.field_violations)
        else:
            retry = packed.Is(error_details_pb2.RetryInfo.DESCRIPTOR)
    assert retry == ("grpc-retry-pushback-ms" in trailers), trailers
    return Failure(error.code().name, error.details(), reason, fields, index, retry)
