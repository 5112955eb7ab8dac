"""Plans of the calls that describe a server and its models, and of the reload."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC

from latentserve._client.plans import Plan, UnaryCall
from latentserve._client.requests import selector
from latentserve._client.values import ModelIdentity, ModelInfo, RefusedModel, Reloaded, ServerInfo
from latentserve.v1 import admin_service_pb2
from latentserve.v1 import latent_service_pb2 as pb

# Bytes of a message that are reserved for everything but rows.
_OVERHEAD_BYTES = 1024


@dataclass
class Limits:
    """A client's cache of the server's limits on messages.

    Attributes:
        rows: Maximum number of rows per message, by the requested model name and version.
        message_bytes: Maximum size of a message in bytes; 0 until it is queried.
    """

    rows: dict[tuple[str, int], int] = field(default_factory=dict)
    message_bytes: int = 0


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
    return described


def limits_of(limits: Limits, model: str, version: int, *, files: bool) -> Plan[tuple[int, int]]:
    """Returns the maximum rows and bytes of a message; queries the server if needed.

    Args:
        limits: The client's cache of limits; updated.
        model: Requested name of the model.
        version: Requested version of the model.
        files: Whether the rows are files. Only then the limit of bytes is queried, since arrays
            are split by rows alone.
    """
    rows = limits.rows.get((model, version))
    if rows is None:
        rows = (yield from model_info(limits, model, version)).max_rows
    if files and not limits.message_bytes:
        limits.message_bytes = (yield from info()).max_message_bytes
    return rows, max(1, limits.message_bytes - _OVERHEAD_BYTES)


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
    shape = model.image_shape
    return ModelInfo(
        name=model.name,
        version=model.version,
        image_shape=(shape.channels, shape.height, shape.width),
        latent_dim=model.latent_dim,
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
        prior_mean=tuple(model.prior_mean),
        prior_std=tuple(model.prior_std),
        has_percentiles=model.has_percentiles,
    )
