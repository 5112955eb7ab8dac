"""Descriptions of a server and its models: the replies of GetServerInfo and GetModel."""

from datetime import UTC

from bundle import Manifest
from latentserve import __version__
from latentserve.v1 import latent_service_pb2 as pb
from service.models import onnx
from service.models.limits import max_rows
from service.models.model import Model
from service.models.repository import Models
from service.settings import Settings


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
        ),
        default_model=models.default,
        models=[describe_model(model, settings) for model in models],
        device=settings.device,
    )


def describe_model(model: Model, settings: Settings) -> pb.ModelInfo:
    """Describes a model: shapes, labels, metrics, graphs and provenance."""
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
        max_rows=max_rows(manifest, settings.max_rows, settings.max_message_bytes),
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
        dataset=manifest.dataset.name,
        noise=manifest.noise,
        precision=manifest.precision,
        prior_mean=model.prior_mean.tolist(),
        prior_std=model.prior_std.tolist(),
        has_percentiles=bool(manifest.score_percentiles),
    )
    info.created_at.FromDatetime(manifest.created_at.astimezone(UTC))
    return info


def _figures(manifest: Manifest) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in manifest.metrics.items()
        if isinstance(value, int | float)
    }
