"""One export: run folder in, verified bundle out."""

import dataclasses
import hashlib
import io
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
    DeviceKind,
    FileRef,
    GraphName,
    GraphRef,
    Manifest,
    Parity,
    TensorSpec,
    check_name,
    write_bundle,
)
from common import noise
from export.card import (
    MOST_CLASSES,
    classes_picture,
    model_card,
    reconstruction_picture,
    samples_picture,
)
from export.errors import ExportError
from export.evaluate import (
    Subject,
    Wanted,
    load_known,
    measure,
    subject_of_graphs,
    without_elbo,
)
from export.graphs import OPSET, ExportedGraph, export_graphs
from export.variants import (
    TOLERANCES,
    VARIANT_TOLERANCES,
    Precision,
    answers_of,
    convert_decoder,
    differences_of,
)
from export.verify import (
    BATCHES,
    check_batch_invariance,
    check_parity,
    check_structure,
    measure_parity,
    torch_answers,
)
from latentserve import __version__
from service.models.model import ModelRefused, load_model
from service.models.onnx import VERSION as ONNXRUNTIME_VERSION
from service.models.onnx import Device
from training.data.datasets import Dataset, binarize
from training.data.spec import DataSpec
from training.errors import DataMissing
from training.measure.elbo import evaluate
from training.measure.protocol import TEST_SEED, test_images
from training.run_folder import RunConfig, RunFolder

Array = NDArray[np.float32]

_DTYPES: dict[int, Literal["float32", "int64"]] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.INT64: "int64",
}

# The same draws on both sides, so only float32 rounding is between them.
_ELBO_TOLERANCE = 0.05
_ELBO_RELATIVE = 1e-5
# Of what training measured.
_KEPT = (
    "protocol", "elbo", "reconstruction", "kl", "elbo_stderr", "active_units", "images", "draws",
    "seed",
)  # fmt: skip
_CALIBRATION_IMAGES = 512
# Images in a row of a picture; half as many of those larger than that.
_CARD_ACROSS = 10
_LARGE = 64
_GOLDEN_IMAGES = 8
_GOLDEN_LATENTS = 32
_CARD_SEED = 7


def export(
    run_path: Path,
    model: Path,
    *,
    decoder: Precision = "fp32",
    wanted: Wanted = Wanted(),  # noqa: B008 - frozen
    data: str | None = None,
    report: Callable[[str], None] = print,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Path:
    """Exports a complete run as the next version of a model.

    Args:
        run_path: The folder of a run that `latentserve train` has finished.
        model: `MODELS/NAME`.
        decoder: What the decoder is to compute in.
        wanted: What to measure beside the ELBO.
        data: Where the data is now, as `DataSpec.parse` takes it; None for where it was
            when the run was begun.
        report: Called with a line for each step.
        progress: Called while the importance-weighted bound is measured.

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
    percentiles = run.read_json("score_percentiles.json")["percentiles"]
    dataset = _load(config, data, report)
    if dataset is None and decoder != "fp32":
        raise ExportError(
            f"{decoder}: what it costs is measured on {config.data}, which is not here; wanted "
            "--data, to say where it is now"
        )
    vae = run.load_model()
    graphs = export_graphs(vae)
    labels = config.class_names[: vae.labels]
    inputs = parity_inputs(graphs, golden_images, len(labels))
    differences: dict[str, float] = {}
    for name, graph in graphs.items():
        rows = {each: inputs[each] for each in graph.inputs}
        check_structure(graph)
        differences |= measure_parity(graph, rows)
        check_batch_invariance(name, graph.content, rows)
    check_parity(differences, TOLERANCES["cpu"])
    report(f"torch and onnxruntime differ by at most {max(differences.values()):.1e}")
    golden = _golden(graphs, inputs)
    contents = {name: graph.content for name, graph in graphs.items()}
    measuring = _Measuring(config, trained, len(labels), dataset, report, progress)
    variant_differences: dict[str, float] = {}
    if decoder == "fp32":
        metrics = measuring.of(contents, wanted)
    else:
        plain = measuring.of(contents, Wanted(draws=wanted.draws, seed=wanted.seed))
        variant = convert_decoder(
            graphs["decoder"], decoder, calibration=measuring.latents(contents)
        )
        contents["decoder"] = variant.content
        variant_differences = differences_of(variant, inputs["z"])
        golden |= answers_of(variant, {"z": golden["decoder.z"]})
        metrics = measuring.of(contents, wanted, fp32=plain)
    tolerances = {"decoder": VARIANT_TOLERANCES.get(decoder, {})}
    files = {f"{name}.onnx": content for name, content in contents.items()}
    files["golden.npz"] = _npz(golden)
    means = torch_answers(graphs["encoder"], inputs)["mean"][: len(golden_images)]
    files |= _pictures(contents, golden_images, means, config, labels)

    def manifest_for(version: int) -> Manifest:
        return Manifest(
            name=model.name,
            version=version,
            created_at=datetime.now(UTC).replace(microsecond=0),
            image_shape=config.image_shape,
            latent_dim=config.model.latent_dim,
            likelihood="bernoulli",
            posterior=config.model.posterior,
            prior=config.model.prior.kind,
            labels=labels,
            class_names=config.class_names,
            precision=decoder,
            graphs={
                name: _graph_ref(f"{name}.onnx", raw, tolerances.get(name, {}))
                for name, raw in contents.items()
            },
            golden=_file_ref("golden.npz", files["golden.npz"]),
            tolerances=TOLERANCES,
            preprocessing={
                "channels": {1: "grey", 3: "rgb"}[config.image_shape[0]],
                "size": list(config.image_shape[1:]),
                "scale": 1 / 255,
            },
            noise=noise.NAME,
            dataset=DatasetRef(
                name=_public(config.data),
                spec=config.data.to_json() | {"source": _public(config.data)},
                sha256=config.data_sha256,
                split=config.split,
            ),
            training={
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
            },
            metrics=metrics,
            score_percentiles=tuple(percentiles),
            parity=Parity(
                batches=BATCHES,
                max_abs_difference=differences,
                tolerance=TOLERANCES["cpu"],
                batch_invariant=True,
                precision_difference=variant_differences,
            ),
            tools={
                "latentserve": __version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
                "onnx": onnx.__version__,
                "onnxruntime": ONNXRUNTIME_VERSION,
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


def parity_inputs(
    graphs: Mapping[GraphName, ExportedGraph], golden: NDArray[np.uint8], labels: int
) -> dict[str, NDArray[Any]]:
    """Rows to compare on, by the name of the input: as many as the largest batch.

    Images are the golden ones, grey and binarized; half of the latents are where the
    posteriors are, half where the prior is.

    Args:
        graphs: The graphs.
        golden: uint8 [N, C, H, W].
        labels: How many classes the prior knows.
    """
    rows = max(BATCHES)
    images = [golden.astype(np.float32) / np.float32(255)]
    while sum(map(len, images)) < rows:
        images.append(binarize(golden, seed=len(images)))
    image = np.concatenate(images)[:rows]
    mean = torch_answers(graphs["encoder"], {"image": image})["mean"]
    inputs: dict[str, NDArray[Any]] = {
        "image": image,
        "eps": noise.standard_normal(0, 0, rows, mean.shape[1]),
        "u": noise.uniform(0, 0, rows),
        "label": np.arange(rows, dtype=np.int64) % (labels + 1) - 1,
    }
    drawn = inputs["eps"]
    if "prior" in graphs:
        drawn = torch_answers(graphs["prior"], inputs)["z"]
    inputs["z"] = np.concatenate([mean[: rows // 2], drawn[rows // 2 :]])
    return inputs


def _golden(
    graphs: Mapping[GraphName, ExportedGraph], inputs: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Inputs and torch's answers, by "graph.tensor"."""
    golden: dict[str, NDArray[Any]] = {}
    for name, graph in graphs.items():
        # Images are most of the file; rows of latents cost nothing.
        rows = _GOLDEN_IMAGES if name in ("encoder", "decoder") else _GOLDEN_LATENTS
        first = {each: inputs[each][:rows] for each in graph.inputs}
        golden |= {f"{name}.{each}": array for each, array in first.items()}
        answers = torch_answers(graph, first)
        golden |= {f"{name}.{output}": answer for output, answer in answers.items()}
    return golden


def _load(config: RunConfig, data: str | None, report: Callable[[str], None]) -> Dataset | None:
    """The data of a run, or None where it is gone."""
    try:
        return load_known(
            config.data.to_json(), config.data_sha256, data, report=report, fetch=False
        )
    except DataMissing:
        if data is not None:
            raise
        return None


@dataclass(frozen=True)
class _Measuring:
    """Measures the very graphs; where the data is gone, training's figures stand."""

    config: RunConfig
    trained: dict[str, Any]
    labels: int
    dataset: Dataset | None
    report: Callable[[str], None]
    progress: Callable[[int, int], None]

    def of(
        self,
        graphs: Mapping[GraphName, bytes],
        wanted: Wanted,
        fp32: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The figures of a model.

        Args:
            graphs: Its graphs.
            wanted: What to measure.
            fp32: Where its decoder computes in fewer bits: the figures of the one that
                does not.

        Raises:
            ExportError: The figures of a fp32 model are not those of torch.
        """
        plain = self.config.model.posterior == "delta"
        if self.dataset is None:
            self.report(
                "the data set is not here: the figures are those training measured with torch"
            )
            kept = {name: self.trained[name] for name in _KEPT if name in self.trained}
            return (without_elbo(kept) if plain else kept) | {"measured_on": "torch"}
        figures = measure(self._subject(graphs), self.dataset, wanted, self.report, self.progress)
        result = figures.to_json() | {"measured_on": "onnxruntime"}
        # Of a plain autoencoder training keeps the same figure under this name.
        name, elbo = ("reconstruction" if plain else "elbo"), figures.evaluation.elbo
        title = "test reconstruction" if plain else "test ELBO"
        if fp32 is not None:
            self.report(
                f"{title} of this decoder {elbo:.3f} nats, of the fp32 one {fp32[name]:.3f}: "
                f"{elbo - fp32[name]:+.3f}"
            )
            return result | {f"{name}_fp32": fp32[name]}
        if not plain and (wanted.draws, wanted.seed) != (1, TEST_SEED):
            # Training's figure is of these draws.
            images = test_images(self.dataset, binarized=self.config.train.binarize)
            elbo = evaluate(self._subject(graphs).autoencoder, images, seed=TEST_SEED).elbo
        torch_elbo = self.trained["elbo"]
        self.report(f"{title} of the graphs {elbo:.2f} nats (torch: {torch_elbo:.2f})")
        allowed = max(_ELBO_TOLERANCE, _ELBO_RELATIVE * abs(torch_elbo))
        if not abs(elbo - torch_elbo) <= allowed:
            raise ExportError(
                f"{title} of the graphs {elbo:.3f} nats, of torch {torch_elbo:.3f}: wanted at "
                f"most {allowed:g} apart"
            )
        return result

    def latents(self, graphs: Mapping[GraphName, bytes]) -> Array:
        """What a decoder will meet: latents of training images and, where it can, of the prior."""
        assert self.dataset is not None
        subject = self._subject(graphs)
        images = self.dataset.train.images[:_CALIBRATION_IMAGES].astype(np.float32)
        mean, log_var = subject.autoencoder.encode(images / np.float32(255))
        eps = noise.standard_normal(0, 0, *mean.shape)
        posterior = mean if log_var is None else mean + np.exp(np.float32(0.5) * log_var) * eps
        if subject.draw is None:
            return posterior
        drawn = subject.draw(eps, noise.uniform(0, 0, len(mean)), -1)
        # In turn, so that any part of them has both.
        return np.stack([posterior, drawn], axis=1).reshape(-1, mean.shape[1])

    def _subject(self, graphs: Mapping[GraphName, bytes]) -> Subject:
        return _subject(graphs, self.config, self.labels)


def _subject(graphs: Mapping[GraphName, bytes], config: RunConfig, labels: int) -> Subject:
    return subject_of_graphs(
        graphs,
        latent_dim=config.model.latent_dim,
        prior=config.model.prior.kind,
        labels=labels,
        binarized=config.train.binarize,
    )


def _pictures(
    graphs: Mapping[GraphName, bytes],
    originals: NDArray[np.uint8],
    means: Array,
    config: RunConfig,
    labels: Sequence[str],
) -> dict[str, bytes]:
    """The pictures of the model card, drawn by the graphs themselves."""
    subject = _subject(graphs, config, len(labels))
    drawn = reconstruction_picture(originals, subject.decode(means))
    across = _CARD_ACROSS if max(config.image_shape[1:]) <= _LARGE else _CARD_ACROSS // 2
    if subject.draw is not None:
        drawn |= samples_picture(subject.sample(across * across, _CARD_SEED, None))
    if labels:
        shown = range(min(len(labels), MOST_CLASSES))
        rows = [subject.sample(across, _CARD_SEED, label) for label in shown]
        drawn |= classes_picture(np.concatenate(rows), across)
    return drawn


def _public(spec: DataSpec) -> str:
    """What was loaded, without the way to it: where on whose machine is nobody's business."""
    if spec.kind == "folder":
        return f"folder:{spec.folder.name}"
    if spec.kind == "idx":
        return "idx:" + ",".join("" if file is None else file.name for file in spec.idx_files)
    return spec.source


def _graph_ref(file: str, content: bytes, tolerances: dict[DeviceKind, float]) -> GraphRef:
    model = onnx.load_from_string(content).graph
    return GraphRef(
        **_file_ref(file, content).model_dump(),
        opset=OPSET,
        inputs=tuple(_tensor_spec(value) for value in model.input),
        outputs=tuple(_tensor_spec(value) for value in model.output),
        tolerances=tolerances,
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


def _npz(arrays: dict[str, NDArray[Any]]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
