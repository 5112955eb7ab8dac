"""Builds the manifest of a bundle from a run or an imported model, and what was measured."""

import dataclasses
import hashlib
import math
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch

from bundle import (
    DatasetRef,
    DeviceKind,
    FileRef,
    GraphName,
    GraphRef,
    Manifest,
    Parity,
    TensorSpec,
    schema_version_of,
)
from common import noise
from export.precisions import Precision, Weights
from export.run import FinishedRun
from export.sources.imported import Imported
from export.variants import TOLERANCES, VARIANT_TOLERANCES
from latentserve import __version__
from service.models.onnx import VERSION as ONNXRUNTIME_VERSION
from training.data.locations import with_names
from training.run_config import Init, RunConfig

_DTYPES: dict[int, Literal["float32", "int64"]] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.INT64: "int64",
}


def build_manifest(
    name: str,
    version: int,
    run: FinishedRun,
    *,
    precision: Precision,
    weights: Weights,
    graphs: Mapping[GraphName, bytes],
    golden: bytes,
    latent_map: bytes | None,
    parity: Parity,
    metrics: dict[str, Any],
    rows_at_once: int,
    bytes_per_pixel: float,
) -> Manifest:
    """Builds a manifest.

    Args:
        name: Name of the model.
        version: Version of the model.
        run: The run that the bundle is exported from.
        precision: Precision of the decoder.
        weights: Precision in which weights are stored.
        graphs: Content of the ONNX files by name of the graph.
        golden: Content of `golden.npz`.
        latent_map: Content of `map.npz`; None without the data.
        parity: Result of the comparison with torch.
        metrics: Metrics on the test set.
        rows_at_once: Maximum rows to compute at once; 0 for no limit.
        bytes_per_pixel: Peak memory of a row per pixel of its image.
    """
    config = run.config
    tolerances = {"decoder": VARIANT_TOLERANCES.get(precision, {})}
    return Manifest(
        schema_version=schema_version_of(conditional=config.model.conditional),
        name=name,
        version=version,
        created_at=datetime.now(UTC).replace(microsecond=0),
        image_shape=config.image_shape,
        latent_dim=config.model.latent_dim,
        latent_shape=(config.model.latent_dim,),
        likelihood=run.model.likelihood.name,
        mixture=config.model.mixture,
        posterior=config.model.posterior,
        prior=config.model.prior.kind,
        conditional=config.model.conditional,
        labels=run.labels,
        class_weights=run.model.class_weights,
        class_names=config.class_names,
        precision=precision,
        weights=weights,
        graphs={
            graph: graph_ref(f"{graph}.onnx", content, tolerances.get(graph, {}))
            for graph, content in graphs.items()
        },
        golden=file_ref("golden.npz", golden),
        tolerances=TOLERANCES,
        tolerance_kind="relative",
        rows_at_once=rows_at_once,
        bytes_per_pixel=bytes_per_pixel,
        preprocessing={
            "channels": {1: "grey", 3: "rgb"}[config.image_shape[0]],
            "size": list(config.image_shape[1:]),
            "scale": 1 / 255,
        },
        noise=noise.NAME,
        dataset=DatasetRef(
            name=with_names(config.data.source),
            spec=config.data.to_json() | {"source": with_names(config.data.source)},
            sha256=config.data_sha256,
            split=config.split,
        ),
        training=_training(config, run.trained_metrics),
        metrics=metrics,
        latent_map=None if latent_map is None else file_ref("map.npz", latent_map),
        score_percentiles=run.score_percentiles,
        parity=parity,
        tools=_tools(),
    )


def imported_manifest(
    name: str,
    version: int,
    imported: Imported,
    *,
    graphs: Mapping[GraphName, bytes],
    golden: bytes,
    parity: Parity,
    metrics: dict[str, Any],
    rows_at_once: int,
    bytes_per_pixel: float,
) -> Manifest:
    """Builds the manifest of a model that was not trained here.

    Args:
        name: Name of the model.
        version: Version of the model.
        imported: The model.
        graphs: Content of the ONNX files by name of the graph.
        golden: Content of `golden.npz`.
        parity: Result of the comparison with the source.
        metrics: What was measured.
        rows_at_once: Maximum rows to compute at once; 0 for no limit.
        bytes_per_pixel: Peak memory of a row per pixel of its image.
    """
    channels, *size = imported.image_shape
    return Manifest(
        name=name,
        version=version,
        created_at=datetime.now(UTC).replace(microsecond=0),
        image_shape=imported.image_shape,
        latent_dim=math.prod(imported.latent_shape),
        latent_shape=imported.latent_shape,
        sizes=imported.sizes,
        latent_scaling=imported.latent_scaling,
        likelihood=imported.likelihood,
        posterior=imported.posterior,
        prior=imported.prior,
        class_names=imported.class_names,
        graphs={graph: graph_ref(f"{graph}.onnx", content) for graph, content in graphs.items()},
        golden=file_ref("golden.npz", golden),
        tolerances=TOLERANCES,
        tolerance_kind="relative",
        rows_at_once=rows_at_once,
        bytes_per_pixel=bytes_per_pixel,
        preprocessing={
            "channels": {1: "grey", 3: "rgb"}[channels],
            **({} if imported.sizes is not None else {"size": size}),
            "scale": 1 / 255,
        },
        noise=noise.NAME,
        metrics=metrics,
        origin=imported.origin,
        parity=parity,
        tools=_tools(),
    )


def _tools() -> dict[str, str]:
    return {
        "latentserve": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": ONNXRUNTIME_VERSION,
        "numpy": np.__version__,
    }


def _training(config: RunConfig, trained: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "preset": config.preset,
        "settings": config.settings,
        "model": dataclasses.asdict(config.model),
        "train": dataclasses.asdict(config.train),
        "steps": config.steps,
        "budget_seconds": config.budget_seconds,
        "threads": config.threads,
        "processes": config.processes,
        "device": config.device,
        "precision": config.precision,
        "seconds_per_thread": trained.get("train_seconds_per_thread"),
        "skipped_steps": trained.get("skipped_steps"),
        "versions": config.versions,
        # Only where it applies, so that bundles of other runs stay the same to the byte.
        **({} if config.init is None else {"init": _init(config.init)}),
    }


def _init(init: Init) -> dict[str, Any]:
    """What a run began with, without the path of its folder: that is nobody else's business."""
    parts = Path(init.run).parts[-2:] if init.step is None else Path(init.run).parts[-1:]
    return {**dataclasses.asdict(init), "run": "/".join(parts)}


def graph_ref(
    file: str, content: bytes, tolerances: Mapping[DeviceKind, float] | None = None
) -> GraphRef:
    """The manifest's record of a graph, read off its file.

    Args:
        file: Name of the file.
        content: Content of the file.
        tolerances: Tolerances that are wider than the manifest's, by device.
    """
    model = onnx.load_from_string(content)
    graph = model.graph
    return GraphRef(
        **file_ref(file, content).model_dump(),
        opset=model.opset_import[0].version,
        inputs=tuple(_tensor_spec(value) for value in graph.input),
        outputs=tuple(_tensor_spec(value) for value in graph.output),
        tolerances=dict(tolerances or {}),
    )


def _tensor_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    return TensorSpec(
        name=value.name,
        dtype=_DTYPES[tensor.elem_type],
        shape=tuple(axis.dim_param or axis.dim_value for axis in tensor.shape.dim),
    )


def file_ref(file: str, content: bytes) -> FileRef:
    """The manifest's record of a file.

    Args:
        file: Name of the file.
        content: Content of the file.
    """
    return FileRef(file=file, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
