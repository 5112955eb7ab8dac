"""Descriptions of a server and its models: the replies of GetServerInfo and GetModel."""

import json
from datetime import UTC

import numpy as np

from bundle import Manifest
from latentserve import __version__
from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import tensor_pb2
from service.api import codec
from service.api.sizes import Sizes
from service.errors import NoLatentMap
from service.models import onnx
from service.models.model import Model
from service.models.repository import Models
from service.settings import Settings

# Largest D of which the mean and standard deviation of the prior are sent.
_MAX_PRIOR_DIM = 4096
# Bytes reserved in the reply of GetLatentMap for lengths, and for the label of a row: -1, the
# longest, takes ten.
_MAP_OVERHEAD_BYTES, _LABEL_BYTES = 256, 10


def describe_server(models: Models, settings: Settings) -> pb.GetServerInfoResponse:
    """Describes a server: versions, limits and models."""
    return pb.GetServerInfoResponse(
        version=__version__,
        onnxruntime_version=onnx.VERSION,
        limits=pb.Limits(
            max_rows=settings.max_rows,
            max_message_bytes=settings.max_message_bytes,
            max_queue_rows=settings.max_queue_rows,
            max_queue_bytes=settings.queue_bytes,
            max_score_draws=settings.max_score_draws,
            max_pixels=settings.max_pixels,
            max_compute_bytes=settings.compute_bytes,
        ),
        default_model=models.default,
        models=[describe_model(model, settings) for model in models],
        device=settings.device,
        routes=[
            pb.Route(name=name, version=version, percent=percent)
            for name, route in models.routes.items()
            for version, percent in route.shares
        ],
    )


def describe_model(model: Model, settings: Settings) -> pb.ModelInfo:
    """Describes a model: shapes, labels, metrics, graphs and provenance."""
    manifest = model.manifest
    channels, height, width = manifest.image_shape
    sizes = Sizes(model, settings)
    sends_prior = manifest.latent_dim <= _MAX_PRIOR_DIM
    info = pb.ModelInfo(
        name=manifest.name,
        version=manifest.version,
        image_shape=pb.ImageShape(channels=channels, height=height, width=width),
        latent_dim=manifest.latent_dim,
        posterior=manifest.posterior,
        prior=manifest.prior,
        likelihood=manifest.likelihood,
        labels=manifest.labels,
        max_rows=sizes.max_rows,
        metrics=_figures(manifest),
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
        dataset=manifest.dataset.name if manifest.dataset is not None else "",
        noise=manifest.noise,
        precision=manifest.precision,
        prior_mean=model.prior_mean.tolist() if sends_prior else (),
        prior_std=model.prior_std.tolist() if sends_prior else (),
        has_percentiles=bool(manifest.score_percentiles),
        latent_shape=manifest.latent_shape,
        rows_at_once=manifest.rows_at_once,
        bytes_per_pixel=manifest.bytes_per_pixel,
        memory_bytes=model.memory_bytes,
        has_latent_map=model.latent_map is not None,
        class_names=manifest.class_names,
        batch_invariant=_batch_invariant(manifest),
        conditional=manifest.conditional,
    )
    if manifest.sizes is not None:
        info.sizes.CopyFrom(
            pb.Sizes(
                factor=manifest.sizes.factor,
                multiple=manifest.sizes.multiple,
                least=manifest.sizes.least,
                most_pixels=sizes.most_pixels,
            )
        )
    if manifest.latent_scaling is not None:
        info.latent_scaling.CopyFrom(pb.LatentScaling(**manifest.latent_scaling.model_dump()))
    if manifest.origin is not None:
        origin = manifest.origin
        info.origin.CopyFrom(
            pb.Origin(
                kind=origin.kind,
                class_name=origin.class_name,
                configuration=json.dumps(origin.configuration) if origin.configuration else "",
                sha256=origin.sha256,
                licence=origin.licence,
            )
        )
    info.created_at.FromDatetime(manifest.created_at.astimezone(UTC))
    return info


def describe_map(model: Model, settings: Settings) -> pb.GetLatentMapResponse:
    """Returns the map of a model's latent space: as many of its rows as fit into a message.

    Raises:
        NoLatentMap: The bundle has none.
    """
    manifest, found = model.manifest, model.latent_map
    if found is None:
        raise NoLatentMap(f"{manifest.name}: version {manifest.version} has no latent map")
    reply = pb.GetLatentMapResponse(
        kl=found.kl.tolist(),
        class_names=manifest.class_names,
        model=pb.ModelIdentity(name=manifest.name, version=manifest.version),
    )
    left = settings.max_message_bytes - reply.ByteSize() - _MAP_OVERHEAD_BYTES
    rows = max(0, left) // (found.mean.itemsize * manifest.latent_dim + _LABEL_BYTES)
    reply.labels.extend(found.labels[:rows].tolist())
    mean = found.mean[:rows].astype(np.float32)
    codec.put_tensor(reply.mean, mean, tensor_pb2.DATA_TYPE_FLOAT16)
    return reply


def _batch_invariant(manifest: Manifest) -> bool | None:
    """Whether rows have the same bits in every batch; None if the bundle does not say."""
    if manifest.parity is not None:
        return manifest.parity.batch_invariant
    return True if manifest.rows_at_once == 0 else None


def _figures(manifest: Manifest) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in manifest.metrics.items()
        if isinstance(value, int | float)
    }
