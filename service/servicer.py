"""Turns request messages into reply messages. Knows protobuf and the engine, not grpc."""

import math
import time
from collections.abc import Callable
from datetime import UTC
from typing import Any

from bundle import Manifest
from latentserve import __version__
from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import tensor_pb2
from service import codec, engine, runtime
from service.engine import Draw, Engine
from service.errors import InvalidArgument, NotForThisModel
from service.limits import max_rows
from service.model import Model
from service.noise import ROWS
from service.settings import Settings
from service.store import Models

_FORMATS = {
    pb.IMAGE_FORMAT_UNSPECIFIED: False,
    pb.IMAGE_FORMAT_FLOAT32: False,
    pb.IMAGE_FORMAT_UINT8: True,
}
#: The label that means any class.
ANY_LABEL = -1
#: Above these a graph's float32 arithmetic may overflow.
MAX_TEMPERATURE = 100.0


class Servicer:
    """Answers the RPCs of LatentService.

    Every method takes a request message and returns its reply or raises a
    ServiceError.

    Args:
        engine: Computes.
        models: Returns the models being served now.
        settings: The limits.
    """

    def __init__(self, engine: Engine, models: Callable[[], Models], settings: Settings):
        self._engine = engine
        self._models = models
        self._settings = settings

    async def get_server_info(self, _request: pb.GetServerInfoRequest) -> pb.GetServerInfoResponse:
        """Tells what this server is, how it is limited and which models it serves."""
        models = self._models()
        return pb.GetServerInfoResponse(
            version=__version__,
            onnxruntime_version=runtime.VERSION,
            limits=pb.Limits(
                max_rows=self._settings.max_rows,
                max_message_bytes=self._settings.max_message_bytes,
            ),
            default_model=models.default,
            models=[self._describe(model) for model in models.loaded.values()],
            device=self._settings.device,
        )

    async def list_models(self, _request: pb.ListModelsRequest) -> pb.ListModelsResponse:
        """Describes every model."""
        models = self._models().loaded.values()
        return pb.ListModelsResponse(models=[self._describe(model) for model in models])

    async def get_model(self, request: pb.GetModelRequest) -> pb.GetModelResponse:
        """Describes one model."""
        return pb.GetModelResponse(model=self._describe(self._find(request.model)))

    async def encode(self, request: pb.EncodeRequest) -> pb.EncodeResponse:
        """Maps images to their posteriors."""
        arrived = time.perf_counter()
        model = self._find(request.model)
        images = codec.read_images(
            request.images, "images", model.manifest.image_shape, self._max_rows(model.manifest)
        )
        draw = _draw(request, len(images)) if request.draw else None
        answer = await self._engine.encode(model, images, draw)
        encoded = answer.value
        return pb.EncodeResponse(
            mean=codec.write_tensor(encoded.mean),
            log_var=None if encoded.log_var is None else codec.write_tensor(encoded.log_var),
            z=None if encoded.z is None else codec.write_tensor(encoded.z),
            seed=None if draw is None else draw.seed,
            model=_identity(model),
            timing=_timing(answer.timing, arrived),
        )

    async def decode(self, request: pb.DecodeRequest) -> pb.DecodeResponse:
        """Maps latents to images."""
        arrived = time.perf_counter()
        model = self._find(request.model)
        as_uint8 = _as_uint8(request.format)
        z = codec.read_latents(
            request.latents, "latents", model.manifest.latent_dim, self._max_rows(model.manifest)
        )
        answer = await self._engine.decode(model, z, as_uint8=as_uint8)
        return pb.DecodeResponse(
            images=tensor_pb2.Images(tensor=codec.write_tensor(answer.value)),
            model=_identity(model),
            timing=_timing(answer.timing, arrived),
        )

    async def sample(self, request: pb.SampleRequest) -> pb.SampleResponse:
        """Draws latents from the prior and decodes them."""
        arrived = time.perf_counter()
        model = self._find(request.model)
        most = self._max_rows(model.manifest)
        if not 1 <= request.count <= most:
            raise InvalidArgument("count", request.count, f"1 to {most}")
        label = _label(request, model.manifest)
        draw = _draw(request, request.count)
        answer = await self._engine.sample(
            model,
            request.count,
            draw,
            label=label,
            temperature=_temperature(request),
            truncation=_truncation(request),
            as_uint8=_as_uint8(request.format),
        )
        sampled = answer.value
        return pb.SampleResponse(
            images=tensor_pb2.Images(tensor=codec.write_tensor(sampled.images)),
            latents=codec.write_tensor(sampled.latents) if request.return_latents else None,
            seed=draw.seed,
            offset=draw.offset,
            model=_identity(model),
            timing=_timing(answer.timing, arrived),
        )

    def _find(self, selector: pb.ModelSelector) -> Model:
        return self._models().find(selector.name, selector.version)

    def _max_rows(self, manifest: Manifest) -> int:
        return max_rows(manifest, self._settings.max_rows, self._settings.max_message_bytes)

    def _describe(self, model: Model) -> pb.ModelInfo:
        manifest = model.manifest
        channels, height, width = manifest.image_shape
        info = pb.ModelInfo(
            name=manifest.name,
            version=manifest.version,
            image_shape=pb.ImageShape(channels=channels, height=height, width=width),
            latent_dim=manifest.latent_dim,
            posterior=manifest.posterior,
            prior=manifest.prior,
            likelihood=manifest.likelihood,
            labels=manifest.labels,
            max_rows=self._max_rows(manifest),
            metrics={
                name: float(value)
                for name, value in manifest.metrics.items()
                if isinstance(value, int | float)
            },
            graphs=[
                pb.GraphInfo(
                    name=name,
                    sha256=ref.sha256,
                    size_bytes=ref.size_bytes,
                    opset=ref.opset,
                    device=str(model.graphs[name].device),
                )
                for name, ref in manifest.graphs.items()
            ],
            dataset=manifest.dataset.name,
            noise=manifest.noise,
            precision=manifest.precision,
        )
        info.created_at.FromDatetime(manifest.created_at.astimezone(UTC))
        return info


def _draw(request: Any, rows: int) -> Draw:
    seed = request.seed if request.HasField("seed") else engine.fresh_seed()
    if request.offset + rows > ROWS:
        raise InvalidArgument(
            "offset", request.offset, f"at most 2^64 - {rows}, so that every row has an index"
        )
    return Draw(seed, request.offset)


def _label(request: pb.SampleRequest, manifest: Manifest) -> int:
    """The class wanted; -1 means any."""
    if not request.HasField("label") or request.label == ANY_LABEL:
        return ANY_LABEL
    if not manifest.labels:
        raise NotForThisModel(
            f"label: got {request.label}, but the prior of {manifest.name} knows no classes"
        )
    if not 0 <= request.label < len(manifest.labels):
        raise InvalidArgument("label", request.label, f"-1 to {len(manifest.labels) - 1}")
    return int(request.label)


def _temperature(request: pb.SampleRequest) -> float:
    if not request.HasField("temperature"):
        return 1.0
    if not 0.0 <= request.temperature <= MAX_TEMPERATURE:
        raise InvalidArgument(
            "temperature", f"{request.temperature:g}", f"0 to {MAX_TEMPERATURE:g}"
        )
    return request.temperature


def _truncation(request: pb.SampleRequest) -> float | None:
    if not request.HasField("truncation"):
        return None
    if not 0.0 < request.truncation < math.inf:
        raise InvalidArgument("truncation", f"{request.truncation:g}", "a finite number above 0")
    return request.truncation


def _as_uint8(image_format: int) -> bool:
    try:
        return _FORMATS[image_format]  # type: ignore[index]
    except KeyError:
        raise InvalidArgument("format", image_format, "FLOAT32 (1) or UINT8 (2)") from None


def _identity(model: Model) -> pb.ModelIdentity:
    return pb.ModelIdentity(name=model.manifest.name, version=model.manifest.version)


def _timing(timing: engine.Timing, arrived: float) -> pb.Timing:
    return pb.Timing(
        queue_seconds=timing.queue,
        compute_seconds=timing.compute,
        total_seconds=time.perf_counter() - arrived,
        batch_rows=timing.batch_rows,
    )
