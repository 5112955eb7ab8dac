"""Measures the `metrics` of a manifest on the exported graphs and compares them with training."""

from collections.abc import Callable, Mapping
from typing import Any

from bundle import GraphName
from export.errors import ExportError
from export.evaluate import Figures, Wanted, measure, without_elbo
from export.run import FinishedRun
from export.subject import Subject
from training.data.datasets import Dataset
from training.measure.elbo import evaluate
from training.measure.protocol import TEST_SEED, test_images

# Largest allowed difference of the ELBO in nats, absolute and relative: training and export use the
# same draws, so only float32 rounding differs.
_ELBO_TOLERANCE = 0.05
_ELBO_RELATIVE = 1e-5

# Metrics of the training that a manifest keeps if the graphs cannot be measured.
_FROM_TRAINING = (
    "protocol", "elbo", "reconstruction", "kl", "elbo_stderr", "bits_per_dimension", "active_units",
    "images", "draws", "seed", "psnr", "ssim", "reconstructed_images",
)  # fmt: skip


def measure_graphs(
    run: FinishedRun,
    graphs: Mapping[GraphName, bytes],
    wanted: Wanted,
    report: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Measures fp32 graphs; if the data set is gone, returns what training measured.

    Args:
        run: The run that the graphs were exported from.
        graphs: Content of the ONNX files by name of the graph.
        wanted: What to measure.
        report: Called with a line for each result.
        progress: As for `measure`.

    Returns:
        The metrics in the form of the manifest.

    Raises:
        ExportError: The ELBO of the graphs differs from that of the torch model.
    """
    if run.dataset is None:
        report("the data set is not here: the metrics are those that training measured with torch")
        return _trained_metrics(run)
    subject = run.subject_of(graphs)
    figures = measure(subject, run.dataset, wanted, report, progress)
    _check_elbo(run, run.dataset, subject, figures, report)
    return figures.to_json() | {"measured_on": "onnxruntime"}


def measure_variant(
    run: FinishedRun,
    graphs: Mapping[GraphName, bytes],
    wanted: Wanted,
    fp32: Mapping[str, Any],
    report: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Measures graphs whose decoder has a reduced precision.

    Args:
        run: The run that the graphs were exported from; its data set must be available.
        graphs: Content of the ONNX files by name of the graph.
        wanted: What to measure.
        fp32: The metrics of the same model with its fp32 decoder.
        report: Called with a line for each result.
        progress: As for `measure`.

    Returns:
        The metrics in the form of the manifest.
    """
    assert run.dataset is not None
    figures = measure(run.subject_of(graphs), run.dataset, wanted, report, progress)
    name, title, elbo = _headline(figures)
    report(
        f"{title} of this decoder {elbo:.3f} nats, of the fp32 one {fp32[name]:.3f}: "
        f"{elbo - fp32[name]:+.3f}"
    )
    return figures.to_json() | {"measured_on": "onnxruntime", f"{name}_fp32": fp32[name]}


def _headline(figures: Figures) -> tuple[str, str, float]:
    """The metric by which models are compared: its name, its title and its value in nats."""
    elbo = figures.evaluation.elbo
    if figures.plain:
        return "reconstruction", "test reconstruction", elbo
    return "elbo", "test ELBO", elbo


def _trained_metrics(run: FinishedRun) -> dict[str, Any]:
    trained = run.trained_metrics
    kept = {name: trained[name] for name in _FROM_TRAINING if name in trained}
    if run.config.model.posterior == "delta":
        kept = without_elbo(kept)
    return kept | {"measured_on": "torch"}


def _check_elbo(
    run: FinishedRun,
    dataset: Dataset,
    subject: Subject,
    figures: Figures,
    report: Callable[[str], None],
) -> None:
    """Compares the ELBO of the graphs with the one training measured with torch.

    Raises:
        ExportError: They differ by more than float32 rounding explains.
    """
    _, title, elbo = _headline(figures)
    result = figures.evaluation
    if not figures.plain and (result.draws, result.seed) != (1, TEST_SEED):
        # Training measured its ELBO with these draws.
        images = test_images(dataset, binarized=run.config.train.binarize)
        labels = dataset.test.labels
        elbo = evaluate(subject.autoencoder, images, labels=labels, seed=TEST_SEED).elbo
    torch_elbo = run.elbo
    report(f"{title} of the graphs {elbo:.2f} nats (torch: {torch_elbo:.2f})")
    allowed = max(_ELBO_TOLERANCE, _ELBO_RELATIVE * abs(torch_elbo))
    if not abs(elbo - torch_elbo) <= allowed:
        raise ExportError(
            f"{title} of the graphs {elbo:.3f} nats, of torch {torch_elbo:.3f}: wanted at "
            f"most {allowed:g} apart"
        )
