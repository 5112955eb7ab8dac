"""Messages of the Open Inference Protocol for tests, and its service in this process."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from google.protobuf.message_factory import GetMessageClass
from numpy.typing import NDArray

from service.api.bfloat16 import from_bfloat16, to_bfloat16
from service.api.inference import inference_service_pb2 as pb
from service.api.inference.servicer import InferenceServicer
from service.api.servicer import Servicer
from service.api.wire import serialized
from service.engine.admission import Admission
from service.engine.call import Call
from service.engine.engine import Engine
from service.models.model import Model
from service.models.repository import Models
from service.observe.metrics import Metrics
from service.observe.telemetry import Telemetry
from service.settings import Settings
from service.transport.health import Health

DATATYPES = {
    "float32": "FP32",
    "float16": "FP16",
    "float64": "FP64",
    "uint8": "UINT8",
    "int32": "INT32",
    "int64": "INT64",
    "uint64": "UINT64",
}
CONTENTS = {
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "UINT8": "uint_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT64": "uint64_contents",
}
DTYPES = {datatype: dtype for dtype, datatype in DATATYPES.items()}


class Bfloat16:
    """An array to be sent as BF16.

    Args:
        array: float32.
    """

    def __init__(self, array: NDArray[np.float32]):
        self.array = array


def infer_request(
    model: str,
    inputs: Mapping[str, Any],
    outputs: Sequence[str] = (),
    *,
    typed: bool = False,
    version: str = "",
    request_id: str = "",
    **parameters: Any,
) -> pb.ModelInferRequest:
    """A ModelInfer request.

    Args:
        model: Name of the model.
        inputs: Arrays by name, or `Bfloat16`.
        outputs: Names of the outputs.
        typed: Whether elements are in typed contents.
        version: Version of the model.
        request_id: `id` of the request.
        **parameters: Its parameters.
    """
    request = pb.ModelInferRequest(model_name=model, model_version=version, id=request_id)
    for name, given in inputs.items():
        brain = isinstance(given, Bfloat16)
        array = given.array if isinstance(given, Bfloat16) else np.asarray(given)
        datatype = "BF16" if brain else DATATYPES[str(array.dtype)]
        tensor = request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        if typed:
            getattr(tensor.contents, CONTENTS[datatype]).extend(array.ravel().tolist())
        else:
            sent = to_bfloat16(array) if brain else array
            request.raw_input_contents.append(sent.tobytes())
    for name in outputs:
        request.outputs.add(name=name)
    for name, value in parameters.items():
        put_parameter(request.parameters[name], value)
    return request


def put_parameter(parameter: pb.InferParameter, value: Any) -> None:
    """Sets a parameter in the field of the value's type, as tritonclient does."""
    kinds = {bool: "bool", int: "int64", float: "double", str: "string"}
    unsigned = isinstance(value, int) and value >= 2**63
    kind = "uint64" if unsigned else kinds[type(value)]
    setattr(parameter, f"{kind}_param", value)


def arrays_of(reply: pb.ModelInferResponse) -> dict[str, NDArray[Any]]:
    """The outputs of a reply, in their order; BF16 as float32."""
    found: dict[str, NDArray[Any]] = {}
    for index, output in enumerate(reply.outputs):
        shape = tuple(output.shape)
        if output.HasField("contents"):
            assert not reply.raw_output_contents
            elements = getattr(output.contents, CONTENTS[output.datatype])
            array = np.array(elements, DTYPES[output.datatype])
        elif output.datatype == "BF16":
            array = from_bfloat16(np.frombuffer(reply.raw_output_contents[index], "<u2"))
        else:
            array = np.frombuffer(reply.raw_output_contents[index], DTYPES[output.datatype])
        found[output.name] = array.reshape(shape)
    return found


class InferenceStub:
    """Methods of GRPCInferenceService over a channel, by name.

    grpcio's generated stub is not needed, and would be one more file of the server alone.

    Args:
        channel: The channel, blocking or not.
        methods: Further methods of the service, which send and return bytes.
    """

    def __init__(self, channel: Any, methods: Sequence[str] = ()):
        service = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
        for method in service.methods:
            call = channel.unary_unary(
                f"/{service.full_name}/{method.name}",
                request_serializer=GetMessageClass(method.input_type).SerializeToString,
                response_deserializer=GetMessageClass(method.output_type).FromString,
            )
            setattr(self, method.name, call)
        for name in methods:
            setattr(self, name, channel.unary_unary(f"/{service.full_name}/{name}"))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


class InProcess:
    """The two services over the same models, without a transport.

    Args:
        *loaded: The models.
        fast_path: Whether requests are answered by plans where there are some.
        **settings: Settings of the server.
    """

    def __init__(self, *loaded: Model, fast_path: bool = True, **settings: Any):
        self.models = Models()
        self.health = Health()
        self.engine = Engine(Admission(10_000, 2**30), Telemetry(Metrics(), None, lambda *_: None))
        self.native = Servicer(
            self.engine, lambda: self.models, Settings(**settings), fast_path=fast_path
        )
        self.servicer = InferenceServicer(self.native, self.health)
        self.serve(*loaded)

    def serve(self, *loaded: Model, **more: Any) -> None:
        """What a reload does: one reference is swapped."""
        found: dict[str, dict[int, Model]] = {}
        for model in sorted(loaded, key=lambda one: one.manifest.version, reverse=True):
            found.setdefault(model.manifest.name, {})[model.manifest.version] = model
        names = sorted(found)
        versions = MappingProxyType({name: found[name] for name in names})
        self.models = Models(names[0] if names else "", versions, **more)
        self.health.show(self.models, device_ok=True)

    async def infer(
        self, request: pb.ModelInferRequest, call: Call | None = None
    ) -> pb.ModelInferResponse:
        """Answers a ModelInfer request; leaves the request as it is."""
        copy = pb.ModelInferRequest.FromString(request.SerializeToString())
        reply = await self.servicer.model_infer(copy, call or Call())
        return pb.ModelInferResponse.FromString(b"".join(serialized(reply)))

    async def arrays(self, *arguments: Any, **more: Any) -> dict[str, NDArray[Any]]:
        """Outputs of a request that `infer_request` makes."""
        return arrays_of(await self.infer(infer_request(*arguments, **more)))

    def close(self) -> None:
        """Ends the compute threads."""
        self.engine.close()
