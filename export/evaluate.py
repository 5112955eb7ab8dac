"""Measures the model of a run or a bundle on its test set, with the same code for both."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bundle import open_bundle
from common.likelihood import Likelihood, bits_per_dimension
from export.errors import ExportError
from export.subject import Subject, subject_of_bundle, subject_of_torch
from training.data.datasets import Dataset, load_dataset
from training.data.locations import KINDS
from training.data.spec import DataSpec
from training.errors import ConfigError, DataMissing
from training.measure.classifier import load_classifier
from training.measure.elbo import BoundEvaluation, Evaluation, evaluate, importance_bound
from training.measure.fid import Generation, measure_generation
from training.measure.protocol import describe, test_images
from training.measure.quality import Quality, measure_quality
from training.run_folder import RunFolder


@dataclass(frozen=True)
class Wanted:
    """What to measure.

    Attributes:
        draws: Draws of z per image for the ELBO.
        seed: Seed of the draws; the binarization of the test set does not depend on it.
        importance: K, draws per image for the importance-weighted bound; 0 to skip it.
        importance_images: Number of test images for that bound.
        samples: Number of samples for the classifier-FID; 0 to skip it.
        label_samples: Number of samples per class, if the model or its prior is conditional on
            the class.
    """

    draws: int = 1
    seed: int = 0
    importance: int = 0
    importance_images: int = 1000
    samples: int = 0
    label_samples: int = 1000


@dataclass(frozen=True)
class Figures:
    """The metrics of a model.

    Attributes:
        evaluation: The ELBO and its parts on the whole test set.
        quality: The likeness of reconstructions.
        dimensions: C * H * W.
        bound: The importance-weighted bound on the test set or a subset; None if not measured.
        generation: The quality of samples; None if not measured.
        binarized: Whether the images were binarized.
        likelihood: p(x|z).
        plain: Whether the model is a plain autoencoder, which has a reconstruction
            error but no ELBO.
    """

    evaluation: Evaluation
    quality: Quality
    dimensions: int
    bound: BoundEvaluation | None
    generation: Generation | None
    binarized: bool
    likelihood: Likelihood = "bernoulli"
    plain: bool = False

    @property
    def nll(self) -> tuple[float, float] | None:
        """The importance-weighted bound of the whole test set and its standard error, in nats.

        If the bound was measured on a subset only, this is the ELBO of the whole test set minus
        the gap between ELBO and bound on the subset. The standard error treats the two as
        independent; they are positively correlated, so it is slightly too large.
        """
        if self.bound is None:
            return None
        if self.bound.images == self.evaluation.images:
            return self.bound.nll, self.bound.stderr
        return (
            self.evaluation.elbo - self.bound.gap,
            float(np.hypot(self.evaluation.elbo_stderr, self.bound.gap_stderr)),
        )

    @property
    def nll_bits_per_dimension(self) -> float | None:
        """The importance-weighted bound in bits per dimension."""
        if self.nll is None:
            return None
        return bits_per_dimension(self.nll[0], self.dimensions)

    def to_json(self) -> dict[str, Any]:
        """The metrics by name, as in a manifest."""
        result = describe(self.evaluation, binarized=self.binarized, likelihood=self.likelihood)
        if self.plain:
            result = without_elbo(result)
        result |= dataclasses.asdict(self.quality)
        if self.bound is not None and self.nll is not None:
            nll, stderr = self.nll
            bound = {f"importance_{k}": v for k, v in dataclasses.asdict(self.bound).items()}
            result |= {
                "nll": nll,
                "nll_stderr": stderr,
                "nll_bits_per_dimension": self.nll_bits_per_dimension,
            } | bound
        if self.generation is not None:
            judged = dataclasses.asdict(self.generation)
            judged["samples"], judged["samples_seed"] = judged.pop("images"), judged.pop("seed")
            result |= {name: value for name, value in judged.items() if value is not None}
        return result


def without_elbo(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Removes the ELBO from a plain autoencoder's metrics, leaving its reconstruction error."""
    names = {"elbo_stderr": "reconstruction_stderr"}
    left_out = {"elbo", "bits_per_dimension", "kl", "draws", "seed"}
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
        report: Called with a line for each metric that cannot be measured.
        progress: Called while the importance-weighted bound is measured, with the number of
            images done and of all images that it is measured on.

    Raises:
        ConfigError: The number of samples is out of range.
    """
    judged = bool(wanted.samples) and subject.draw is not None and _has_classifier(dataset)
    most = len(dataset.train.images)
    if judged and not 2 <= wanted.samples <= most:
        raise ConfigError(
            f"--samples: got {wanted.samples}, wanted 0, or 2 to {most}, the number of training "
            "images, which samples are compared with"
        )
    model, labels = subject.autoencoder, dataset.test.labels
    images = test_images(dataset, binarized=subject.binarized)
    result = evaluate(model, images, labels=labels, draws=wanted.draws, seed=wanted.seed)
    bound = None
    plain = model.encode(images[:1], *model.given(labels, slice(1)))[1] is None
    if wanted.importance and plain:
        report("a plain autoencoder has no likelihood: the importance-weighted bound is left out")
    elif wanted.importance:
        count = min(wanted.importance_images, len(images))
        # Evenly spread: the first half of MNIST's test set is the easier one.
        rows = np.arange(count) * len(images) // count
        bound = importance_bound(
            model,
            images[rows],
            labels=labels[rows],
            draws=wanted.importance,
            seed=wanted.seed,
            progress=lambda done: progress(done, count),
        )
    generation = None
    if wanted.samples and subject.draw is None:
        report("the model has no prior: its samples are not judged")
    elif wanted.samples and not judged:
        report(f"there is no classifier for {dataset.name}: the samples are not judged")
    elif judged:
        generation = measure_generation(
            subject.sample,
            load_classifier(),
            dataset,
            images=wanted.samples,
            labels=range(subject.labels),
            per_label=wanted.label_samples,
            seed=wanted.seed,
        )
    quality = measure_quality(model, subject.decode, dataset.test.images, labels)
    kind, dimensions = model.likelihood, math.prod(dataset.image_shape)
    return Figures(result, quality, dimensions, bound, generation, subject.binarized, kind, plain)


def evaluate_path(
    path: Path,
    wanted: Wanted,
    data: str | None = None,
    *,
    report: Callable[[str], None],
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> tuple[str, Figures]:
    """Measures the model in a run folder or bundle, without changing the folder.

    Args:
        path: A run folder (measured with torch) or a bundle, `MODELS/NAME/VERSION`
            (measured with onnxruntime).
        wanted: What to measure.
        data: Current source of the data, in the syntax of `DataSpec.parse`; None if the data is
            where it was during training.
        report: Called with a line for each download and each metric that cannot be
            measured.
        progress: As for `measure`.

    Returns:
        A description of the model, and its metrics.

    Raises:
        ExportError: The folder is neither a run nor a bundle, or the data is not what the
            model was trained on.
        BundleError: The bundle is damaged.
        TrainingError: The run is damaged or the data is not available.
    """
    source = _open(path)
    dataset = find_training_data(source.data, source.data_sha256, data, report=report)
    return source.title, measure(source.subject, dataset, wanted, report, progress)


@dataclass(frozen=True)
class _Source:
    """A run folder or bundle, ready to be measured.

    Attributes:
        title: Description of the run or bundle, one line.
        subject: The model.
        data: Fields of the `DataSpec` that the model was trained on, by name.
        data_sha256: Checksums of the data's files, by file name.
    """

    title: str
    subject: Subject
    data: Mapping[str, Any]
    data_sha256: Mapping[str, str]


def _open(path: Path) -> _Source:
    """Opens a bundle, or else a run folder.

    Raises:
        ExportError: The folder is neither.
    """
    if (path / "manifest.json").is_file():
        return _open_bundle(path)
    if (path / "config.json").is_file():
        return _open_run(path)
    raise ExportError(
        f"{path}: wanted a run folder (config.json) or a bundle MODELS/NAME/VERSION (manifest.json)"
    )


def _open_bundle(path: Path) -> _Source:
    # By links as well, of any name: nothing is served under it.
    bundle = open_bundle(path.resolve())
    manifest = bundle.manifest
    if manifest.dataset is None:
        raise ExportError(f"{path}: its manifest names no data set on which it can be measured")
    subject = subject_of_bundle(bundle)
    return _Source(
        f"bundle {manifest.name}/{manifest.version} (onnxruntime)",
        subject,
        # Schema 1.0 has no spec.
        {"source": manifest.dataset.name} | manifest.dataset.spec,
        manifest.dataset.sha256,
    )


def _open_run(path: Path) -> _Source:
    run = RunFolder(path)
    config = run.read_config()
    title = f"run {path} (torch)"
    if not run.complete:
        title += f", unfinished: {run.steps_done()} steps done"
    subject = subject_of_torch(run.load_model(), binarized=config.train.binarize)
    return _Source(title, subject, config.data.to_json(), config.data_sha256)


def find_training_data(
    fields: Mapping[str, Any],
    sha256: Mapping[str, str],
    data: str | None,
    *,
    report: Callable[[str], None],
) -> Dataset:
    """Loads data as `load_training_data`; where local files are missing, says how to name them.

    Raises:
        DataMissing: The data is not available.
        ExportError: As in `load_training_data`; or the files are no longer there.
        TrainingError: The data is damaged.
    """
    try:
        return load_training_data(fields, sha256, data, report=report)
    except DataMissing as error:
        kind = fields["source"].partition(":")[0]
        if data is not None or kind not in KINDS:
            raise
        raise ExportError(f"{error}. Remedy: --data {kind}:PATH, where it is now") from error


def load_training_data(
    fields: Mapping[str, Any],
    sha256: Mapping[str, str],
    data: str | None = None,
    *,
    report: Callable[[str], None],
    fetch: bool = True,
) -> Dataset:
    """Loads the data a model was trained on; checks that its content has not changed.

    Args:
        fields: Fields of the data's `DataSpec`, by name.
        sha256: Checksums that the data's files had during training, by file name.
        data: Current source of the data, in the syntax of `DataSpec.parse`; None for the
            source in `fields`.
        report: Called with a line for each step of a download.
        fetch: Whether to download a public data set that is not cached.

    Raises:
        DataMissing: The data is not available.
        ExportError: The checksums are not those of the training.
        TrainingError: The data is damaged.
    """
    spec = DataSpec.parse(**{**fields, "source": data or fields["source"]})
    dataset = load_dataset(spec, report=report, fetch=fetch)
    # The files may have been renamed since.
    if sorted(dataset.sha256.values()) != sorted(sha256.values()):
        raise ExportError(f"{spec} here is not the data that the model was trained on")
    return dataset


def _has_classifier(dataset: Dataset) -> bool:
    """Whether the digit classifier can judge samples of a model trained on this data set."""
    return dataset.name == "mnist" and dataset.image_shape == (1, 28, 28)
