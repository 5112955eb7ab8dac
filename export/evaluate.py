"""Measures a run or a bundle on its test set, with one and the same code."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bundle import GraphName, open_bundle
from common import noise
from export.errors import ExportError
from service.models.onnx import Device, Graph
from training.data.datasets import Dataset, binarize, load_dataset
from training.data.spec import DataSpec
from training.errors import DataMissing
from training.measure.adapter import as_autoencoder
from training.measure.classifier import load_classifier
from training.measure.elbo import (
    Autoencoder,
    BoundEvaluation,
    Evaluation,
    evaluate,
    importance_bound,
)
from training.measure.fid import Generation, measure_generation
from training.measure.protocol import TEST_SEED, describe
from training.model.prior import Sampler
from training.model.vae import Vae
from training.run_folder import RunFolder

Array = NDArray[np.float32]
Draw = Callable[[Array, Array, int], Array]

_CHUNK = 500


@dataclass(frozen=True)
class Subject:
    """A model that can be measured, whatever runs behind it.

    Attributes:
        autoencoder: Encodes, decodes and knows the density of its prior.
        draw: Turns eps [N, D], u [N, 1] and a label (-1 for any) into latents of the
            prior; None where there is none.
        latent_dim: D.
        labels: How many classes the prior can be asked for.
        binarized: Whether it is measured on binarized images.
    """

    autoencoder: Autoencoder
    draw: Draw | None
    latent_dim: int
    labels: int
    binarized: bool

    def sample(self, count: int, seed: int, label: int | None) -> Array:
        """The images that a server would draw: float32 [count, C, H, W] in [0, 1]."""
        assert self.draw is not None
        images = []
        for start in range(0, count, _CHUNK):
            rows = min(_CHUNK, count - start)
            eps = noise.standard_normal(seed, start, rows, self.latent_dim)
            u = noise.uniform(seed, start, rows)
            z = self.draw(eps, u, -1 if label is None else label)
            images.append(self.decode(z))
        return np.concatenate(images)

    def decode(self, z: Array) -> Array:
        """Latents float32 [N, D] to images float32 [N, C, H, W] in [0, 1]."""
        logits = torch.from_numpy(self.autoencoder.decode(z))
        images: Array = torch.sigmoid(logits).numpy()
        return images


def subject_of_graphs(
    graphs: Mapping[GraphName, bytes], *, latent_dim: int, prior: str, labels: int, binarized: bool
) -> Subject:
    """Wraps the graphs of a bundle.

    Args:
        graphs: The ONNX files by what they do.
        latent_dim: D.
        prior: Kind of the prior, as the manifest has it.
        labels: How many classes the prior can be asked for.
        binarized: Whether it is measured on binarized images.
    """
    sessions = {name: Graph(content, Device("cpu")) for name, content in graphs.items()}

    def encode(images: Array) -> tuple[Array, Array | None]:
        answers = sessions["encoder"].run({"image": images})
        return answers["mean"], answers.get("log_var")

    def log_prior(z: Array) -> Array:
        label = np.full(len(z), -1, np.int64)
        return sessions["prior_density"].run({"z": z, "label": label})["log_prob"]

    def draw(eps: Array, u: Array, label: int) -> Array:
        if "prior" not in sessions:
            return eps
        labels = np.full(len(eps), label, np.int64)
        return sessions["prior"].run({"eps": eps, "u": u, "label": labels})["z"]

    return Subject(
        Autoencoder(
            encode,
            lambda z: sessions["decoder"].run({"z": z}, ("logits",))["logits"],
            log_prior if "prior_density" in sessions else None,
        ),
        None if prior == "none" else draw,
        latent_dim,
        labels,
        binarized,
    )


def subject_of_torch(model: Vae, *, binarized: bool) -> Subject:
    """Wraps a torch model, as `subject_of_graphs` does graphs."""
    sampler = None if model.prior is None else Sampler(model.prior)

    @torch.inference_mode()
    def draw(eps: Array, u: Array, label: int) -> Array:
        if sampler is None:
            return eps
        labels = torch.full((len(eps),), label)
        z: Array = sampler(torch.from_numpy(eps), torch.from_numpy(u), labels).numpy()
        return z

    return Subject(
        as_autoencoder(model),
        None if model.config.prior.kind == "none" else draw,
        model.config.latent_dim,
        model.labels,
        binarized,
    )


@dataclass(frozen=True)
class Wanted:
    """What to measure.

    Attributes:
        draws: Draws of z per image for the ELBO.
        seed: Key of the draws. The bits of the test set are the same for every seed.
        importance: K of the importance-weighted bound; 0 for none.
        importance_images: How many test images to measure that bound on.
        samples: How many samples to judge; 0 for none.
        label_samples: How many to judge of each class that can be asked for.
    """

    draws: int = 1
    seed: int = 0
    importance: int = 0
    importance_images: int = 1000
    samples: int = 0
    label_samples: int = 1000


@dataclass(frozen=True)
class Figures:
    """What was measured.

    Attributes:
        evaluation: The ELBO and its parts on the whole test set.
        bound: The importance-weighted bound on a part of it, where it was wanted.
        generation: How the samples are judged, where that was wanted and there is a
            classifier for the data.
        binarized: Whether the images were binarized.
        plain: Whether the model is a plain autoencoder, which has a reconstruction
            error and no ELBO.
    """

    evaluation: Evaluation
    bound: BoundEvaluation | None
    generation: Generation | None
    binarized: bool
    plain: bool = False

    @property
    def nll(self) -> tuple[float, float] | None:
        """The importance-weighted bound of the whole test set and its standard error.

        Where it was measured on a part of the images: the ELBO of all of them less the
        gap on that part. Where the gap is wide the ELBO is high, which makes the true
        error a little smaller than the one stated, of independent sums.
        """
        if self.bound is None:
            return None
        if self.bound.images == self.evaluation.images:
            return self.bound.nll, self.bound.stderr
        return (
            self.evaluation.elbo - self.bound.gap,
            float(np.hypot(self.evaluation.elbo_stderr, self.bound.gap_stderr)),
        )

    def to_json(self) -> dict[str, Any]:
        """All figures by name, as they stand in a manifest."""
        result = describe(self.evaluation, binarized=self.binarized)
        if self.plain:
            result = without_elbo(result)
        if self.bound is not None and self.nll is not None:
            nll, stderr = self.nll
            bound = {f"importance_{k}": v for k, v in dataclasses.asdict(self.bound).items()}
            result |= {"nll": nll, "nll_stderr": stderr} | bound
        if self.generation is not None:
            judged = dataclasses.asdict(self.generation)
            judged["samples"], judged["samples_seed"] = judged.pop("images"), judged.pop("seed")
            result |= {name: value for name, value in judged.items() if value is not None}
        return result


def without_elbo(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a plain autoencoder: what is called its ELBO is its reconstruction error."""
    names = {"elbo_stderr": "reconstruction_stderr"}
    left_out = {"elbo", "kl", "draws", "seed"}
    return {names.get(name, name): value for name, value in metrics.items() if name not in left_out}


def measure(
    subject: Subject,
    dataset: Dataset,
    wanted: Wanted,
    report: Callable[[str], None],
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Figures:
    """Measures a model on the test split of its data.

    Args:
        subject: The model.
        dataset: The data it was trained on.
        wanted: What to measure.
        report: Called with a line where a figure cannot be had.
        progress: Called with the images whose bound has been measured, and all of them.
    """
    images = (
        binarize(dataset.test.images, TEST_SEED)
        if subject.binarized
        else dataset.test.images.astype(np.float32) / np.float32(255)
    )
    result = evaluate(subject.autoencoder, images, draws=wanted.draws, seed=wanted.seed)
    bound = None
    plain = subject.autoencoder.encode(images[:1])[1] is None
    if wanted.importance and plain:
        report("a plain autoencoder has no likelihood: the importance-weighted bound is left out")
    elif wanted.importance:
        count = min(wanted.importance_images, len(images))
        # Evenly spread: the first half of MNIST's test set is the easier one.
        subset = images[np.arange(count) * len(images) // count]
        bound = importance_bound(
            subject.autoencoder,
            subset,
            draws=wanted.importance,
            seed=wanted.seed,
            progress=lambda done: progress(done, count),
        )
    generation = None
    if wanted.samples and subject.draw is None:
        report("the model has no prior: its samples are not judged")
    elif wanted.samples and not _has_judge(dataset):
        report(f"there is no classifier for {dataset.name}: the samples are not judged")
    elif wanted.samples:
        generation = measure_generation(
            subject.sample,
            load_classifier(),
            dataset,
            images=wanted.samples,
            labels=range(subject.labels),
            per_label=wanted.label_samples,
            seed=wanted.seed,
        )
    return Figures(result, bound, generation, subject.binarized, plain)


def evaluate_path(
    path: Path,
    wanted: Wanted,
    data: str | None = None,
    *,
    report: Callable[[str], None],
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> tuple[str, Figures]:
    """Measures what is in a folder; never changes it.

    Args:
        path: A run folder (measured with torch) or a bundle, `MODELS/NAME/VERSION`
            (measured with onnxruntime).
        wanted: What to measure.
        data: Where the data is now, as `DataSpec.parse` takes it; None for where it was
            when the model was trained.
        report: Called with a line where the data has to be fetched or a figure cannot
            be had.
        progress: As of `measure`.

    Returns:
        What was measured, in words, and the figures.

    Raises:
        ExportError: The folder is neither, or the data is not the one trained on.
        BundleError: The bundle is damaged.
        TrainingError: The run is damaged or the data cannot be had.
    """
    if (path / "manifest.json").is_file():
        bundle = open_bundle(path)
        manifest = bundle.manifest
        what = f"bundle {manifest.name}/{manifest.version} (onnxruntime)"
        sha256 = manifest.dataset.sha256
        fields = {"source": manifest.dataset.name} | manifest.dataset.spec
        subject = subject_of_graphs(
            bundle.graphs,
            latent_dim=manifest.latent_dim,
            prior=manifest.prior,
            labels=len(manifest.labels),
            binarized=manifest.training.get("train", {}).get("binarize", True),
        )
    elif (path / "config.json").is_file():
        run = RunFolder(path)
        config = run.read_config()
        what = f"run {path} (torch)"
        if not run.complete:
            what += f", unfinished: {run.steps_done()} steps done"
        fields, sha256 = config.data.to_json(), config.data_sha256
        subject = subject_of_torch(run.load_model(), binarized=config.train.binarize)
    else:
        raise ExportError(
            f"{path}: wanted a run folder (config.json) or a bundle MODELS/NAME/VERSION "
            "(manifest.json)"
        )
    try:
        dataset = load_known(fields, sha256, data, report=report)
    except DataMissing as error:
        kind = fields["source"].partition(":")[0]
        if data is not None or kind not in ("folder", "idx"):
            raise
        raise ExportError(f"{error}. Remedy: --data {kind}:PATH, where it is now") from error
    return what, measure(subject, dataset, wanted, report, progress)


def load_known(
    fields: Mapping[str, Any],
    sha256: Mapping[str, str],
    data: str | None = None,
    *,
    report: Callable[[str], None],
    fetch: bool = True,
) -> Dataset:
    """Loads the data that a model was trained on, and no other.

    Args:
        fields: Of a DataSpec, by name.
        sha256: The checksums of its files.
        data: Where it is now, as `DataSpec.parse` takes it; None for where `fields` say.
        report: Called with lines on how it gets on.
        fetch: Whether a network may be used.

    Raises:
        DataMissing: It is not there.
        ExportError: What is there is something else.
        TrainingError: It is damaged.
    """
    spec = DataSpec.parse(**{**fields, "source": data or fields["source"]})
    dataset = load_dataset(spec, report=report, fetch=fetch)
    # Under whatever names they are kept.
    if sorted(dataset.sha256.values()) != sorted(sha256.values()):
        raise ExportError(f"{spec} here is not the data that the model was trained on")
    return dataset


def _has_judge(dataset: Dataset) -> bool:
    """Whether the classifier was trained on such images."""
    return dataset.name == "mnist" and dataset.image_shape == (1, 28, 28)
