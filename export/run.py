"""The finished training run that an export starts from."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bundle import GraphName
from export.evaluate import load_training_data
from export.subject import Subject, subject_of_graphs
from export.weights import round_weights
from training.data.datasets import Dataset
from training.errors import DataMissing
from training.measure.adapter import as_autoencoder
from training.measure.elbo import evaluate
from training.measure.protocol import TEST_SEED, test_images
from training.model.vae import Vae
from training.run_config import RunConfig
from training.run_folder import RunFolder


@dataclass(frozen=True)
class FinishedRun:
    """The content of a finished run's folder.

    Attributes:
        config: Its configuration.
        model: The trained model, in evaluation mode.
        dataset: The data that the model was trained on; None if it is no longer available.
        trained_metrics: The metrics that training measured with torch.
        elbo: The model's ELBO on the test set in nats, measured with torch; of a plain
            autoencoder, its reconstruction.
        golden_images: uint8 [N, C, H, W], test images set aside by training.
        golden_labels: Their classes, int64 [N]; all 0 if the data has none.
        score_percentiles: The 0th to 100th percentile of the training images' anomaly scores,
            in nats.
    """

    config: RunConfig
    model: Vae
    dataset: Dataset | None
    trained_metrics: Mapping[str, Any]
    elbo: float
    golden_images: NDArray[np.uint8]
    golden_labels: NDArray[np.int64]
    score_percentiles: tuple[float, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes the model, or its prior, can be conditioned on; empty for none."""
        return self.config.class_names[: self.model.labels]

    def subject_of(self, graphs: Mapping[GraphName, bytes]) -> Subject:
        """Wraps graphs exported from this run, so that they are measured like the run.

        Args:
            graphs: Content of the ONNX files by name of the graph.
        """
        return subject_of_graphs(
            graphs,
            latent_dim=self.config.model.latent_dim,
            likelihood=self.model.likelihood.name,
            prior=self.config.model.prior.kind,
            labels=len(self.labels),
            binarized=self.config.train.binarize,
            class_weights=self.model.class_weights,
        )


def load_run(path: Path, data: str | None, report: Callable[[str], None]) -> FinishedRun:
    """Reads a run folder and loads its data set, without network access.

    Args:
        path: The run folder.
        data: Current source of the data, in the syntax of `DataSpec.parse`; None if the data is
            where it was when the run began.
        report: Called with a line for each step of the loading.

    Raises:
        CheckpointError: The run is unfinished or damaged.
        ExportError: The data found is not the data the model was trained on.
        DataMissing: `data` was given, but names no data.
    """
    run = RunFolder(path)
    # Read first, since this fails for an unfinished run, which has no metrics.
    trained_metrics = run.read_json("metrics.json")
    config = run.read_config()
    golden_images, golden_labels = run.read_golden_inputs()
    percentiles = run.read_json("score_percentiles.json")["percentiles"]
    dataset = _load_data(config, data, report)
    return FinishedRun(
        config,
        run.load_model(),
        dataset,
        trained_metrics,
        trained_metrics["elbo"],
        golden_images,
        golden_labels,
        tuple(percentiles),
    )


def with_rounded_weights(run: FinishedRun, report: Callable[[str], None]) -> FinishedRun:
    """The same run with its model's weights rounded to fp16.

    Args:
        run: A run whose data set is available.
        report: Called with a line that says what the rounding costs.
    """
    assert run.dataset is not None
    model = round_weights(run.model)
    images = test_images(run.dataset, binarized=run.config.train.binarize)
    labels = run.dataset.test.labels
    elbo = evaluate(as_autoencoder(model), images, labels=labels, seed=TEST_SEED).elbo
    report(f"weights in fp16: test ELBO {elbo:.3f} nats, in fp32 {run.elbo:.3f}")
    return dataclasses.replace(run, model=model, elbo=elbo)


def _load_data(
    config: RunConfig, data: str | None, report: Callable[[str], None]
) -> Dataset | None:
    """Loads the data of a run; None if `data` is None and the data is no longer there."""
    try:
        return load_training_data(
            config.data.to_json(), config.data_sha256, data, report=report, fetch=False
        )
    except DataMissing:
        if data is not None:
            raise
        return None
