"""Answers requests of the Open Inference Protocol, independent of the transport."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from latentserve.v1 import tensor_pb2
from service.api import codec
from service.api.codec import Pixels
from service.api.fields import latent_dtype_of
from service.api.formats import TENSOR_DTYPES, ImageOutput
from service.api.inference import metadata, names, parameters
from service.api.inference.infer import InferReply, InferRequest, Translated
from service.api.inference.metadata import ModelSpec
from service.api.inference.tensors import DATATYPES, INT64, Tensor
from service.api.scaling import scaling_of
from service.api.servicer import Servicer
from service.engine.call import Call
from service.engine.results import Decoded, Encoded
from service.engine.sampling import Draw
from service.engine.scoring import Scored
from service.errors import DeadlineExceeded, InvalidArgument, NotForThisModel
from service.models.model import Model

# Up to this size, converting elements takes less time than waking a thread to convert them.
_INLINE_BYTES: Final = 256 * 1024
_MAX_TIMEOUT: Final = 2**63 - 1

#: Arrays of a reply by name, and the type that each is sent as; None for that of the array.
_Arrays = Mapping[str, tuple[NDArray[Any], tensor_pb2.DataType | None]]


class Inference:
    """Models as the Open Inference Protocol has them, over the operations of `Servicer`.

    Args:
        servicer: The RPCs of LatentService, whose models and operations these are.
    """

    def __init__(self, servicer: Servicer):
        self._servicer = servicer

    def find(self, name: str, version: str, call: Call, prefix: str = "") -> tuple[Model, str]:
        """Looks up a model.

        Args:
            name: NAME.OPERATION.
            version: The version; empty for the one that is served by default.
            call: The per-call context.
            prefix: Prefix of the fields `name` and `version`, for errors.

        Returns:
            The model and the operation.

        Raises:
            ModelNotFound: There is no such model or version, or it lacks the operation.
            NotReady: No model is loaded.
        """
        own, operation = names.split(name, f"{prefix}name")
        wanted = names.number(version, f"{prefix}version")
        names.check_served(self._servicer.models(), own, operation, wanted, prefix)
        model = self._servicer.selection.named(own, wanted, call, None)
        names.check_operation(model.manifest, operation, f"{prefix}name")
        return model, operation

    def describe(self, model: Model, operation: str) -> tuple[ModelSpec, list[str]]:
        """Describes an operation of a model.

        Returns:
            The description, and the served versions that have the operation.
        """
        spec = metadata.describe(model.manifest, operation, self._servicer.inputs.sizes(model))
        models = self._servicer.models()
        return spec, names.versions_of(models, model.manifest.name, operation)

    def index(self, is_ready: Callable[[str], bool], *, only_ready: bool) -> list[metadata.Indexed]:
        """Lists the models; the arguments are those of `metadata.index`."""
        return metadata.index(self._servicer.models(), is_ready, only_ready=only_ready)

    async def infer(self, request: InferRequest, call: Call) -> InferReply:
        """Runs a model.

        Raises:
            ModelNotFound: As for `find`.
            InvalidArgument: A parameter, input or output has an invalid value; it is named.
            NotForThisModel: The model does not support what is asked for.
            DeadlineExceeded: The time of the parameter `timeout` has passed.
        """
        _, operation = self.find(request.model, request.version, call, "model_")
        micros = parameters.whole(
            request.parameters.get(parameters.TIMEOUT, 0), "parameters.timeout", 0, _MAX_TIMEOUT
        )
        if not micros:
            return await self._infer(request, operation, call)
        call.deadline = min(call.deadline, call.arrived + micros / 1e6)
        left = call.deadline - time.monotonic()
        try:
            async with asyncio.timeout(left) as limit:
                return await self._infer(request, operation, call)
        except TimeoutError:
            if not limit.expired():
                raise
            raise DeadlineExceeded("the deadline has passed") from None

    async def _infer(self, request: InferRequest, operation: str, call: Call) -> InferReply:
        size = sum(len(tensor.data) for tensor in request.inputs.values())
        translated = await self._run(lambda: Translated(request, operation), size, call)
        native, servicer = translated.native, self._servicer
        own, _ = names.split(request.model, "model_name")
        native.model.name, native.model.version = own, names.number(request.version, "")
        # A route may choose another version than the one that was looked up, by the seed.
        model = servicer.selection.find(native, call)
        names.check_operation(model.manifest, operation, "model_name")
        outputs = translated.choose(request, model.manifest, servicer.settings.max_score_draws)
        running = _Running(self._run, model, native, outputs, call)
        try:
            tensors, draw = await getattr(running, operation)(servicer)
        except (InvalidArgument, NotForThisModel) as error:
            raise translated.renamed(error) from error.__cause__
        drawn = {} if draw is None else {"seed": str(draw.seed)}
        return InferReply(request.model, str(model.manifest.version), drawn, tensors)

    async def _run(self, work: Callable[[], Any], size: int, call: Call) -> Any:
        """Runs work on `size` bytes, in a thread if they are many."""
        if size <= _INLINE_BYTES:
            return work()
        return await self._servicer.engine.in_thread(work, call)


class _Running:
    """One request while it runs; each method runs an operation.

    The methods return the outputs, and the noise that was drawn; None if there was none.

    Args:
        run: Takes work, the bytes that it is about, and the call; does large work in a thread.
        model: The model.
        native: This project's own request.
        outputs: Names of the outputs.
        call: The per-call context.
    """

    def __init__(
        self,
        run: Callable[[Callable[[], Any], int, Call], Awaitable[Any]],
        model: Model,
        native: Any,
        outputs: Sequence[str],
        call: Call,
    ):
        self._run = run
        self._model = model
        self._native = native
        self._outputs = outputs
        self._call = call

    async def encode(self, servicer: Servicer) -> tuple[list[Tensor], Draw | None]:
        """Encodes images."""
        native, manifest = self._native, self._model.manifest
        scaling, dtype = scaling_of(native.scaled, manifest), latent_dtype_of(native)

        async def write(encoded: Encoded, draw: Draw | None) -> tuple[list[Tensor], Draw | None]:
            def scaled() -> _Arrays:
                mean, log_var, z = encoded
                if scaling is not None:
                    mean = scaling.scaled(mean)
                    log_var = None if log_var is None else scaling.scaled_log_var(log_var)
                    z = None if z is None else scaling.scaled(z)
                found = {"mean": mean, "log_var": log_var, "z": z}
                return {name: (array, dtype) for name, array in found.items() if array is not None}

            arrays = await self._run(scaled, encoded.mean.nbytes, self._call)
            return await self._tensors(arrays), draw

        return await servicer.operations.encode(self._model, native, self._call, write)

    async def decode(self, servicer: Servicer) -> tuple[list[Tensor], Draw | None]:
        """Decodes latents."""

        async def write(pixels: Pixels, wanted: ImageOutput) -> tuple[list[Tensor], Draw | None]:
            return await self._tensors({"image": (pixels, TENSOR_DTYPES[wanted.format])}), None

        return await servicer.operations.decode(self._model, self._native, self._call, write)

    async def sample(self, servicer: Servicer) -> tuple[list[Tensor], Draw | None]:
        """Samples from the prior."""
        native, operations = self._native, servicer.operations
        dtype = latent_dtype_of(native)
        draw, size = operations.sampling(self._model, native)

        async def write(sampled: Decoded, wanted: ImageOutput) -> tuple[list[Tensor], Draw | None]:
            arrays: dict[str, tuple[NDArray[Any], tensor_pb2.DataType | None]] = {
                "image": (sampled.images, TENSOR_DTYPES[wanted.format]),
                "z": (sampled.latents, dtype),
            }
            if sampled.labels is not None:
                arrays["label"] = (sampled.labels, None)
            return await self._tensors(arrays), draw

        return await operations.sample(self._model, native, draw, size, self._call, write)

    async def reconstruct(self, servicer: Servicer) -> tuple[list[Tensor], Draw | None]:
        """Encodes images and decodes them again."""

        async def write(
            pixels: Pixels, wanted: ImageOutput, draw: Draw | None
        ) -> tuple[list[Tensor], Draw | None]:
            return await self._tensors({"image": (pixels, TENSOR_DTYPES[wanted.format])}), draw

        return await servicer.operations.reconstruct(self._model, self._native, self._call, write)

    async def score(self, servicer: Servicer) -> tuple[list[Tensor], Draw | None]:
        """Scores images."""

        async def write(scored: Scored, draw: Draw | None) -> tuple[list[Tensor], Draw | None]:
            scores = {
                "reconstruction": scored.reconstruction,
                "kl": scored.kl,
                "elbo": scored.elbo,
                "nll": scored.nll,
                "percentile": scored.percentile,
            }
            return await self._tensors(
                {
                    name: (values.astype(np.float32), None)
                    for name, values in scores.items()
                    if values is not None
                }
            ), draw

        return await servicer.operations.score(self._model, self._native, self._call, write)

    async def _tensors(self, arrays: _Arrays) -> list[Tensor]:
        """The outputs, in their order."""
        return [await self._tensor(name, *arrays[name]) for name in self._outputs]

    async def _tensor(
        self, name: str, array: NDArray[Any], dtype: tensor_pb2.DataType | None
    ) -> Tensor:
        if array.dtype == np.int64:
            return Tensor(name, INT64, array.shape, array.astype("<i8").tobytes())
        as_it_is = dtype in (None, tensor_pb2.DATA_TYPE_FLOAT32, tensor_pb2.DATA_TYPE_UINT8)
        size = 0 if as_it_is else array.nbytes
        message, data = await self._run(lambda: codec.bare_tensor(array, dtype), size, self._call)
        return Tensor(name, DATATYPES[message.dtype], array.shape, data)
