"""The RPCs of inference.GRPCInferenceService, independent of the transport.

Each method takes a request and the per-call context; it returns the reply or raises a ServiceError.
"""

from collections.abc import Awaitable
from typing import Final, Protocol

from latentserve import __version__
from service.api.answer import Answer
from service.api.inference import inference_service_pb2 as pb
from service.api.inference import messages, metadata
from service.api.inference.inference import Inference
from service.api.inference.metadata import TensorSpec
from service.api.inference.plans import Plans
from service.api.servicer import Servicer
from service.api.wire import Chunks
from service.engine.call import Call
from service.errors import InvalidArgument

# Messages up to this size are read in less time than it takes to wake a thread.
_INLINE_BYTES: Final = 2**20
_TYPES: Final = {
    "FP32": pb.TYPE_FP32,
    "INT64": pb.TYPE_INT64,
    "UINT64": pb.TYPE_UINT64,
}
_MAX_INT32: Final = 2**31 - 1


class State(Protocol):
    """State of the server, as its health service shows it."""

    @property
    def live(self) -> bool:
        """Whether the device works."""

    @property
    def ready(self) -> bool:
        """Whether the health of the server is SERVING."""

    def model_ready(self, name: str) -> bool:
        """Whether the health of a model is SERVING."""


class InferenceServicer:
    """The RPCs of GRPCInferenceService.

    Args:
        servicer: The RPCs of LatentService, whose models and operations these are.
        state: State of the server.
    """

    def __init__(self, servicer: Servicer, state: State):
        self._servicer = servicer
        self._state = state
        self._inference = Inference(servicer)
        self._plans = Plans(servicer)

    async def server_live(
        self, _request: pb.ServerLiveRequest, _call: Call
    ) -> pb.ServerLiveResponse:
        """Whether the server is live."""
        return pb.ServerLiveResponse(live=self._state.live)

    async def server_ready(
        self, _request: pb.ServerReadyRequest, _call: Call
    ) -> pb.ServerReadyResponse:
        """Whether the server is ready."""
        return pb.ServerReadyResponse(ready=self._state.ready)

    async def model_ready(self, request: pb.ModelReadyRequest, call: Call) -> pb.ModelReadyResponse:
        """Whether a model is ready."""
        model, _ = self._inference.find(request.name, request.version, call)
        return pb.ModelReadyResponse(ready=self._state.model_ready(model.manifest.name))

    async def server_metadata(
        self, _request: pb.ServerMetadataRequest, _call: Call
    ) -> pb.ServerMetadataResponse:
        """Describes the server."""
        return pb.ServerMetadataResponse(
            name=metadata.NAME, version=__version__, extensions=metadata.EXTENSIONS
        )

    async def model_metadata(
        self, request: pb.ModelMetadataRequest, call: Call
    ) -> pb.ModelMetadataResponse:
        """Describes a model."""
        spec, versions = self._inference.describe(
            *self._inference.find(request.name, request.version, call)
        )

        def tensors(specs: list[TensorSpec]) -> list[pb.ModelMetadataResponse.TensorMetadata]:
            return [
                pb.ModelMetadataResponse.TensorMetadata(
                    name=tensor.name, datatype=tensor.datatype, shape=tensor.shape
                )
                for tensor in specs
            ]

        return pb.ModelMetadataResponse(
            name=request.name,
            versions=versions,
            platform=metadata.PLATFORM,
            inputs=tensors(list(spec.inputs)),
            outputs=tensors(list(spec.outputs)),
        )

    async def model_config(
        self, request: pb.ModelConfigRequest, call: Call
    ) -> pb.ModelConfigResponse:
        """Describes a model as Triton does."""
        spec, _ = self._inference.describe(
            *self._inference.find(request.name, request.version, call)
        )
        first = 1 if spec.max_rows else 0  # without the axis of rows
        window = round(1e6 * self._servicer.settings.batch_window_seconds)
        config = pb.ModelConfig(
            name=request.name,
            platform=metadata.PLATFORM,
            backend=metadata.NAME,
            max_batch_size=min(spec.max_rows, _MAX_INT32),
            input=[
                pb.ModelInput(
                    name=tensor.name,
                    data_type=_TYPES[tensor.datatype],
                    dims=tensor.shape[first:],
                    optional=tensor.optional,
                )
                for tensor in spec.inputs
            ],
            output=[
                pb.ModelOutput(
                    name=tensor.name,
                    data_type=_TYPES[tensor.datatype],
                    dims=tensor.shape[first:],
                )
                for tensor in spec.outputs
            ],
            dynamic_batching=pb.ModelDynamicBatching(max_queue_delay_microseconds=window),
        )
        return pb.ModelConfigResponse(config=config)

    def model_infer(self, request: pb.ModelInferRequest, call: Call) -> Awaitable[Chunks]:
        """Runs a model."""
        return self.plan_model_infer(request, call) or self._infer(request, call)

    def plan_model_infer(self, request: pb.ModelInferRequest, call: Call) -> Answer | None:
        """Answers `model_infer` by a cached plan, if there is one for the request."""
        return self._plans.answer(request, call)

    async def repository_index(
        self, request: pb.RepositoryIndexRequest, _call: Call
    ) -> pb.RepositoryIndexResponse:
        """Lists the models."""
        if request.repository_name:
            raise InvalidArgument("repository_name", repr(request.repository_name), "none")
        entries = self._inference.index(self._state.model_ready, only_ready=request.ready)
        return pb.RepositoryIndexResponse(
            models=[
                pb.RepositoryIndexResponse.ModelIndex(
                    name=entry.name, version=entry.version, state=entry.state, reason=entry.reason
                )
                for entry in entries
            ]
        )

    async def _infer(self, message: pb.ModelInferRequest, call: Call) -> Chunks:
        # Before its contents are read: an unknown model is NOT_FOUND, not a wrong input.
        self._inference.find(message.model_name, message.model_version, call, "model_")
        if message.ByteSize() <= _INLINE_BYTES:
            request = messages.read(message)
        else:
            request = await self._servicer.engine.in_thread(lambda: messages.read(message), call)
        typed, request_id = messages.is_typed(message), message.id
        reply = await self._inference.infer(request, call)
        return messages.write(reply, request_id, typed=typed)
