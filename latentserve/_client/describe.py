"""Plans of the calls that describe a server and its models, and of the reload."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC
from typing import NamedTuple

import grpc
import numpy as np

from latentserve._client import codec
from latentserve._client.plans import Plan, UnaryCall
from latentserve._client.requests import selector
from latentserve._client.values import (
    LatentMap,
    LatentScaling,
    ModelIdentity,
    ModelInfo,
    Origin,
    RefusedModel,
    Reloaded,
    Route,
    ServerInfo,
    Sizes,
)
from latentserve.errors import FailedPrecondition
from latentserve.v1 import admin_service_pb2
from latentserve.v1 import latent_service_pb2 as pb

# Bytes of a message that are reserved for everything but rows.
_OVERHEAD_BYTES = 1024
# Maximum pixels of a message for a model of spatial latents, whose rows may take seconds: two
# images of 512 x 512. A message must be answered before its deadline, and has to be sent again
# as a whole.
_MESSAGE_PIXELS = 2**19


@dataclass
class Limits:
    """A client's cache of the server's limits on messages.

    Attributes:
        rows: Maximum number of rows per message, by the requested model name and version.
        message_bytes: Maximum size of a message in bytes; 0 until it is queried.
        models: The models that were described, by requested name and version.
        outdated: Requested names and versions whose server is older than spatial latents, and
            would ignore the options that came with them.
    """

    rows: dict[tuple[str, int], int] = field(default_factory=dict)
    message_bytes: int = 0
    models: dict[tuple[str, int], ModelInfo] = field(default_factory=dict)
    outdated: set[tuple[str, int]] = field(default_factory=set)


class Maxima(NamedTuple):
    """Limits on the messages of a call.

    Attributes:
        rows: Maximum number of rows.
        message_bytes: Maximum size in bytes; 1 if it was not queried.
        model: The model, if it has spatial latents; the rows are then bounded by `pixels` as well.
        pixels: Maximum number of pixels of all rows together.
    """

    rows: int
    message_bytes: int
    model: ModelInfo | None = None
    pixels: int = 0


def info() -> Plan[ServerInfo]:
    """Describes the server."""
    reply: pb.GetServerInfoResponse
    reply = yield UnaryCall("GetServerInfo", pb.GetServerInfoRequest())
    return ServerInfo(
        version=reply.version,
        onnxruntime_version=reply.onnxruntime_version,
        max_rows=reply.limits.max_rows,
        max_message_bytes=reply.limits.max_message_bytes,
        default_model=reply.default_model,
        device=reply.device,
        models=tuple(read_model_info(model) for model in reply.models),
        max_queue_rows=reply.limits.max_queue_rows,
        max_queue_bytes=reply.limits.max_queue_bytes,
        max_score_draws=reply.limits.max_score_draws,
        max_pixels=reply.limits.max_pixels,
        max_compute_bytes=reply.limits.max_compute_bytes,
        routes=tuple(Route(route.name, route.version, route.percent) for route in reply.routes),
    )


def models() -> Plan[tuple[ModelInfo, ...]]:
    """Describes every model and version that is served."""
    reply: pb.ListModelsResponse = yield UnaryCall("ListModels", pb.ListModelsRequest())
    return tuple(read_model_info(model) for model in reply.models)


def model_info(limits: Limits, model: str = "", version: int = 0) -> Plan[ModelInfo]:
    """Describes one model, and caches its limit of rows."""
    request = pb.GetModelRequest(model=selector(model, version))
    reply: pb.GetModelResponse = yield UnaryCall("GetModel", request)
    described = read_model_info(reply.model)
    limits.rows[model, version] = described.max_rows
    limits.models[model, version] = described
    if not reply.model.latent_shape:
        limits.outdated.add((model, version))
    return described


def latent_map(model: str = "", version: int = 0) -> Plan[LatentMap]:
    """Returns where test images lie in the latent space of a model."""
    request = pb.GetLatentMapRequest(model=selector(model, version))
    reply: pb.GetLatentMapResponse = yield UnaryCall("GetLatentMap", request)
    return LatentMap(
        mean=codec.to_array(reply.mean).astype(np.float32),
        labels=np.array(reply.labels, np.int64),
        kl=np.array(reply.kl, np.float32),
        class_names=tuple(reply.class_names),
    )


def limits_of(limits: Limits, model: str, version: int, *, files: bool) -> Plan[Maxima]:
    """Returns the maximum rows and bytes of a message; queries the server if needed.

    Args:
        limits: The client's cache of limits; updated.
        model: Requested name of the model.
        version: Requested version of the model.
        files: Whether the rows are files. Arrays for a model of flat latents are split by rows
            alone, so that the limit of bytes is not queried.
    """
    rows = limits.rows.get((model, version))
    if rows is None:
        rows = (yield from model_info(limits, model, version)).max_rows
    spatial = limits.models.get((model, version))
    if spatial is not None and len(spatial.latent_shape) != 3:
        spatial = None
    if (files or spatial) and not limits.message_bytes:
        limits.message_bytes = (yield from info()).max_message_bytes
    message_bytes = max(1, limits.message_bytes - _OVERHEAD_BYTES)
    pixels = 0 if spatial is None else message_pixels(spatial, message_bytes)
    return Maxima(rows, message_bytes, spatial, pixels)


def message_pixels(model: ModelInfo, message_bytes: int) -> int:
    """Maximum number of pixels of all rows of a message.

    Args:
        model: A model of spatial latents.
        message_bytes: Maximum size of a message.
    """
    channels, height, width = model.image_shape
    pixels = height * width
    # A row counts as a float32 image and three latents, as servers count it.
    row_bytes = 4 * (channels * pixels + 3 * model.latent_dim)
    return min(_MESSAGE_PIXELS, message_bytes * pixels // row_bytes)


def described(limits: Limits, model: str, version: int) -> Plan[ModelInfo]:
    """Returns the cached description of a model; queries the server if there is none."""
    cached = limits.models.get((model, version))
    return (yield from model_info(limits, model, version)) if cached is None else cached


def check_supported(limits: Limits, model: str, version: int, **options: object) -> Plan[None]:
    """Checks that the server is new enough for options, which an older one would ignore.

    Args:
        limits: The client's cache of limits; updated if any option is set.
        model: Requested name of the model.
        version: Requested version of the model.
        **options: The options by name; those that are None, False or empty are not set.

    Raises:
        FailedPrecondition: The server is too old for an option that is set.
    """
    chosen = [name for name, value in options.items() if value]
    if not chosen:
        return
    yield from described(limits, model, version)
    if (model, version) in limits.outdated:
        message = f"{chosen[0]}: the server is older than 0.2.0 and does not have this option"
        raise FailedPrecondition(message, grpc.StatusCode.FAILED_PRECONDITION)


def reload() -> Plan[Reloaded]:
    """Makes the server reload its models folder."""

    def identities(models: Iterable[pb.ModelIdentity]) -> tuple[ModelIdentity, ...]:
        return tuple(ModelIdentity(model.name, model.version) for model in models)

    reply: admin_service_pb2.ReloadResponse
    reply = yield UnaryCall("Reload", admin_service_pb2.ReloadRequest(), repeats=False)
    return Reloaded(
        serving=identities(reply.serving),
        added=identities(reply.added),
        removed=identities(reply.removed),
        refused=tuple(
            RefusedModel(model.name, model.version, model.problem) for model in reply.refused
        ),
    )


def read_model_info(model: pb.ModelInfo) -> ModelInfo:
    """Converts the message that describes a model."""
    shape, dim = model.image_shape, model.latent_dim
    return ModelInfo(
        name=model.name,
        version=model.version,
        image_shape=(shape.channels, shape.height, shape.width),
        latent_dim=dim,
        posterior=model.posterior,
        prior=model.prior,
        likelihood=model.likelihood,
        labels=tuple(model.labels),
        max_rows=model.max_rows,
        metrics=dict(model.metrics),
        devices={graph.name: graph.device for graph in model.graphs},
        checksums={graph.name: graph.sha256 for graph in model.graphs},
        dataset=model.dataset,
        created_at=model.created_at.ToDatetime(UTC),
        noise=model.noise,
        precision=model.precision,
        # Not sent for latents of many dimensions, whose prior is N(0, I).
        prior_mean=tuple(model.prior_mean) or (0.0,) * dim,
        prior_std=tuple(model.prior_std) or (1.0,) * dim,
        has_percentiles=model.has_percentiles,
        latent_shape=tuple(model.latent_shape) or (dim,),
        sizes=_sizes(model.sizes) if model.HasField("sizes") else None,
        latent_scaling=_scaling(model.latent_scaling) if model.HasField("latent_scaling") else None,
        rows_at_once=model.rows_at_once,
        origin=_origin(model.origin) if model.HasField("origin") else None,
        memory_bytes=model.memory_bytes,
        bytes_per_pixel=model.bytes_per_pixel,
        has_latent_map=model.has_latent_map,
        class_names=tuple(model.class_names) or tuple(model.labels),
        batch_invariant=model.batch_invariant if model.HasField("batch_invariant") else None,
        conditional=model.conditional,
    )


def _sizes(sizes: pb.Sizes) -> Sizes:
    return Sizes(sizes.factor, sizes.multiple, sizes.least, sizes.most_pixels)


def _scaling(scaling: pb.LatentScaling) -> LatentScaling:
    return LatentScaling(
        scale=scaling.scale if scaling.HasField("scale") else None,
        shift=scaling.shift,
        mean=tuple(scaling.mean),
        std=tuple(scaling.std),
    )


def _origin(origin: pb.Origin) -> Origin:
    return Origin(
        kind=origin.kind,
        class_name=origin.class_name,
        configuration=origin.configuration,
        sha256=dict(origin.sha256),
        licence=origin.licence,
    )
