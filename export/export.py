"""One export: run folder in, verified bundle out."""

import dataclasses
import hashlib
import io
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from bundle import (
    Bundle,
    DatasetRef,
    FileRef,
    GraphRef,
    Manifest,
    Parity,
    TensorSpec,
    check_name,
    write_bundle,
)
from export.card import model_card, pictures
from export.errors import ExportError
from export.evaluate import graphs_as_autoencoder
from export.graphs import OPSET, ExportedGraph, export_graphs
from export.verify import (
    BATCHES,
    check_batch_invariance,
    check_parity,
    check_structure,
    measure_parity,
)
from latentserve import __version__
from service import noise, runtime
from service.model import ModelRefused, load_model
from service.runtime import Device, Graph
from training.datasets import binarize, load_dataset
from training.errors import DataMissing
from training.evaluation import evaluate
from training.run import RunConfig, RunFolder
from training.train import TEST_SEED, describe

Array = NDArray[np.float32]

_DTYPES: dict[int, Literal["float32", "int64"]] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.INT64: "int64",
}

TOLERANCES: dict[Literal["cpu", "cuda"], float] = {"cpu": 1e-4, "cuda": 1e-3}

# The same draws on both sides, so only float32 rounding is between them.
_ELBO_TOLERANCE = 0.05
_CARD_SAMPLES = 100
_CARD_SEED = 7


def export(run_path: Path, model: Path, report: Callable[[str], None] = print) -> Path:
    """Exports a complete run as the next version of a model.

    Args:
        run_path: The folder of a run that `latentserve train` has finished.
        model: `MODELS/NAME`.
        report: Called with a line for each step.

    Returns:
        The new bundle's folder.

    Raises:
        ExportError: The graphs do not pass a check.
        CheckpointError: The run is not complete or damaged.
        BundleError: The name cannot name a model, or the bundle cannot be written.
    """
    check_name(model.name)
    run = RunFolder(run_path)
    trained = run.read_json("metrics.json")
    config = run.read_config()
    golden_images, _ = run.read_golden_inputs()
    encoder, decoder = export_graphs(run.load_model())
    images, z = _parity_inputs(encoder, golden_images)
    differences: dict[str, float] = {}
    for graph, inputs in ((encoder, images), (decoder, z)):
        check_structure(graph)
        differences |= measure_parity(graph, inputs)
        check_parity(differences, TOLERANCES["cpu"])
        check_batch_invariance(graph, inputs)
    report(f"torch and onnxruntime differ by at most {max(differences.values()):.1e}")
    golden = _golden(encoder, decoder, images[: len(golden_images)])
    metrics = _metrics(encoder, decoder, config, trained, report)
    files = {
        "encoder.onnx": encoder.content,
        "decoder.onnx": decoder.content,
        "golden.npz": _npz(golden),
    }
    session = Graph(decoder.content, Device("cpu"))
    eps = noise.standard_normal(_CARD_SEED, 0, _CARD_SAMPLES, z.shape[1])
    files |= pictures(
        golden_images,
        session.run({"z": golden["encoder.mean"]})["image"],
        session.run({"z": eps})["image"],
    )

    def manifest_for(version: int) -> Manifest:
        return Manifest(
            name=model.name,
            version=version,
            created_at=datetime.now(UTC).replace(microsecond=0),
            image_shape=config.image_shape,
            latent_dim=z.shape[1],
            likelihood="bernoulli",
            posterior="gaussian",
            prior="standard",
            class_names=config.class_names,
            graphs={
                "encoder": _graph_ref("encoder.onnx", encoder),
                "decoder": _graph_ref("decoder.onnx", decoder),
            },
            golden=_file_ref("golden.npz", files["golden.npz"]),
            tolerances=TOLERANCES,
            preprocessing={"channels": "grey" if images.shape[1] == 1 else "rgb", "scale": 1 / 255},
            noise=noise.NAME,
            dataset=DatasetRef(name=config.data, sha256=config.data_sha256, split=config.split),
            training={
                "preset": config.preset,
                "settings": config.settings,
                "model": dataclasses.asdict(config.model),
                "train": dataclasses.asdict(config.train),
                "total_steps": config.total_steps,
                "budget_seconds": config.budget_seconds,
                "threads": config.threads,
                "versions": config.versions,
            },
            metrics=metrics,
            score_percentiles=tuple(run.read_json("score_percentiles.json")["percentiles"]),
            parity=Parity(
                batches=BATCHES,
                max_abs_difference=differences,
                tolerance=TOLERANCES["cpu"],
                batch_invariant=True,
            ),
            tools={
                "latentserve": __version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
                "onnx": onnx.__version__,
                "onnxruntime": runtime.VERSION,
                "numpy": np.__version__,
            },
        )

    return write_bundle(model, files, manifest_for, {"README.md": model_card}, check=_replay)


def _replay(bundle: Bundle) -> None:
    """Loads what was written just as a server will, golden rows included."""
    try:
        load_model(bundle, Device("cpu"))
    except ModelRefused as error:
        raise ExportError(f"a server would refuse this bundle: {error}") from error


def _parity_inputs(encoder: ExportedGraph, golden: NDArray[np.uint8]) -> tuple[Array, Array]:
    """Rows to compare on: the golden images first, grey and binarized, then their latents."""
    rows = max(BATCHES)
    grey = golden.astype(np.float32) / np.float32(255)
    images = [grey]
    while sum(map(len, images)) < rows:
        images.append(binarize(golden, seed=len(images)))
    inputs = np.concatenate(images)[:rows]
    with torch.inference_mode():
        mean, _ = encoder.module(torch.from_numpy(inputs))
    # Half where the posteriors are, half where the prior is.
    z = noise.standard_normal(0, 0, rows, mean.shape[1])
    z[: rows // 2] = mean.numpy()[: rows // 2]
    return inputs, z


def _golden(encoder: ExportedGraph, decoder: ExportedGraph, images: Array) -> dict[str, Array]:
    """Inputs and torch's answers, by "graph.tensor"."""
    with torch.inference_mode():
        mean, log_var = encoder.module(torch.from_numpy(images))
        decoded, logits = decoder.module(mean)
    return {
        "encoder.image": images,
        "encoder.mean": mean.numpy(),
        "encoder.log_var": log_var.numpy(),
        "decoder.z": mean.numpy(),
        "decoder.image": decoded.numpy(),
        "decoder.logits": logits.numpy(),
    }


def _metrics(
    encoder: ExportedGraph,
    decoder: ExportedGraph,
    config: RunConfig,
    trained: dict[str, Any],
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Measures the very graphs; where the data is gone, training's figures stand."""
    training = {"train_seconds_per_thread", "skipped_steps"}
    kept = {key: value for key, value in trained.items() if key in training}
    try:
        dataset = load_dataset(config.data, fetch=False)
    except DataMissing:
        report("the data set is not here: the figures are those training measured with torch")
        return trained | {"measured_on": "torch"}
    if dataset.sha256 != config.data_sha256:
        raise ExportError(f"{config.data} is not the data the run was trained on")
    model = graphs_as_autoencoder(encoder.content, decoder.content)
    result = evaluate(model, binarize(dataset.test.images, TEST_SEED), draws=1, seed=TEST_SEED)
    report(f"test ELBO of the graphs {result.elbo:.2f} nats (torch: {trained['elbo']:.2f})")
    if not abs(result.elbo - trained["elbo"]) <= _ELBO_TOLERANCE:
        raise ExportError(
            f"test ELBO of the graphs {result.elbo:.3f} nats, of torch {trained['elbo']:.3f}: "
            f"wanted at most {_ELBO_TOLERANCE} apart"
        )
    return describe(result) | {"measured_on": "onnxruntime"} | kept


def _graph_ref(file: str, graph: ExportedGraph) -> GraphRef:
    model = onnx.load_from_string(graph.content).graph
    return GraphRef(
        **_file_ref(file, graph.content).model_dump(),
        opset=OPSET,
        inputs=tuple(_tensor_spec(value) for value in model.input),
        outputs=tuple(_tensor_spec(value) for value in model.output),
    )


def _tensor_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    return TensorSpec(
        name=value.name,
        dtype=_DTYPES[kind.elem_type],
        shape=tuple(axis.dim_param or axis.dim_value for axis in kind.shape.dim),
    )


def _file_ref(file: str, content: bytes) -> FileRef:
    return FileRef(file=file, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))


def _npz(arrays: dict[str, Array]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
