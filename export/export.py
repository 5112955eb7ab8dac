"""Exports one run folder as a verified bundle."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from bundle import (
    Bundle,
    GraphName,
    Manifest,
    Parity,
    check_name,
    check_private_key,
    write_bundle,
)
from export.card import model_card
from export.errors import ExportError
from export.evaluate import Wanted
from export.golden import golden_file, golden_rows, parity_inputs
from export.graphs import ExportedGraph, export_graphs
from export.invariance import measure_rows
from export.latent_map import build_map
from export.manifest import build_manifest
from export.memory import bytes_per_pixel
from export.metrics import measure_graphs, measure_variant
from export.pictures import card_pictures
from export.precisions import Precision, Weights
from export.run import FinishedRun, load_run, with_rounded_weights
from export.variants import (
    TOLERANCES,
    answers_of,
    calibration_inputs,
    convert_decoder,
    differences_of,
)
from export.verify import BATCHES, torch_answers, verify_graphs
from export.weights import shrink
from service.models.model import ModelRefused, load_model
from service.models.onnx import Device

Graphs = Mapping[GraphName, ExportedGraph]
InputsOfGraphs = Mapping[GraphName, Mapping[str, NDArray[Any]]]


def export(
    run_path: Path,
    model: Path,
    *,
    decoder: Precision = "fp32",
    weights: Weights = "fp32",
    wanted: Wanted = Wanted(),  # noqa: B008 - frozen
    data: str | None = None,
    key: Path | None = None,
    report: Callable[[str], None] = print,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Path:
    """Exports a finished run as the next version of a model.

    Args:
        run_path: The folder of a run that `latentserve train` has finished.
        model: `MODELS/NAME`.
        decoder: Precision of the decoder.
        weights: Precision in which weights are stored; that of a decoder in reduced precision is
            its own.
        wanted: What to measure in addition to the ELBO.
        data: Current source of the data, in the syntax of `DataSpec.parse`; None if the data is
            where it was when the run began.
        key: File of the private key to sign the bundle with; None to leave it unsigned.
        report: Called with a line for each step.
        progress: Called while the importance-weighted bound is measured, with the number of
            images done and of all images that it is measured on.

    Returns:
        The new bundle's folder.

    Raises:
        ExportError: The graphs fail a check, or the data is needed and not available.
        CheckpointError: The run is unfinished or damaged.
        BundleError: The model's name is invalid, or the bundle cannot be written.
    """
    check_name(model.name)
    if key is not None:
        check_private_key(key)
    run = load_run(run_path, data, report)
    if run.dataset is None and (decoder, weights) != ("fp32", "fp32"):
        raise ExportError(
            f"{decoder if decoder != 'fp32' else weights}: its cost in nats is measured on "
            f"{run.config.data}, which is not here; wanted --data with the path where it is now"
        )
    if weights == "fp32":
        exported = plain = export_graphs(run.model)
    else:
        run = with_rounded_weights(run, report)
        plain = export_graphs(run.model)
        exported = {
            name: dataclasses.replace(graph, content=shrink(graph.content))
            for name, graph in plain.items()
        }
    inputs = parity_inputs(exported, run.golden_images, run.golden_labels, len(run.labels))
    cases = {name: [inputs_of_graph] for name, inputs_of_graph in inputs.items()}
    differences = verify_graphs(exported, cases, TOLERANCES["cpu"])
    report(f"torch and onnxruntime differ by at most {max(differences.values()):.1e}")
    variant = None if decoder == "fp32" else _convert_decoder(run, plain, decoder)
    graphs = _contents(exported, variant)
    golden = golden_file(_golden(exported, variant, inputs))
    metrics = _measure(run, exported, variant, wanted, report, progress)
    limit = measure_rows(graphs, cases)
    if limit.reason:
        report(f"rows are to be computed one at a time. {limit.reason}")
    parity = _parity(differences, variant, inputs, limit.bit_invariant)
    means = torch_answers(exported["encoder"], inputs["encoder"])["mean"]
    subject = run.subject_of(graphs)
    pictures = card_pictures(subject, run.golden_images, run.golden_labels, means, run.labels)
    latent_map = None if run.dataset is None else build_map(subject, run.dataset).to_bytes()

    def manifest_for(version: int, memory: float = 0.0) -> Manifest:
        return build_manifest(
            model.name,
            version,
            run,
            precision=decoder,
            weights=weights,
            graphs=graphs,
            golden=golden,
            latent_map=latent_map,
            parity=parity,
            metrics=metrics,
            rows_at_once=limit.rows,
            bytes_per_pixel=memory,
        )

    memory = bytes_per_pixel(graphs, manifest_for(1))
    files = {f"{name}.onnx": content for name, content in graphs.items()}
    files |= {"golden.npz": golden} | pictures
    if latent_map is not None:
        files["map.npz"] = latent_map
    return write_bundle(
        model,
        files,
        lambda version: manifest_for(version, memory),
        {"README.md": model_card},
        check=check_servable,
        key=key,
    )


def _convert_decoder(run: FinishedRun, exported: Graphs, precision: Precision) -> ExportedGraph:
    """Converts the decoder, with latents of training images and of the prior as calibration."""
    assert run.dataset is not None
    inputs = calibration_inputs(run.subject_of(_contents(exported)), run.dataset.train)
    return convert_decoder(exported["decoder"], precision, inputs)


def _contents(exported: Graphs, variant: ExportedGraph | None = None) -> dict[GraphName, bytes]:
    """Content of the ONNX files by name of the graph; the decoder is `variant` if there is one."""
    contents = {name: graph.content for name, graph in exported.items()}
    return contents if variant is None else contents | {"decoder": variant.content}


def _golden(
    exported: Graphs, variant: ExportedGraph | None, inputs: InputsOfGraphs
) -> dict[str, NDArray[Any]]:
    """The golden rows by "graph.tensor".

    Expected outputs are torch's, except those of a variant, which onnxruntime computes.
    """
    golden = golden_rows(exported, inputs)
    if variant is None:
        return golden
    given = {name: golden[f"{variant.name}.{name}"] for name in variant.inputs}
    return golden | answers_of(variant, given)


def _measure(
    run: FinishedRun,
    exported: Graphs,
    variant: ExportedGraph | None,
    wanted: Wanted,
    report: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Measures the bundle's metrics; with a variant, also the ELBO with the fp32 decoder."""
    if variant is None:
        return measure_graphs(run, _contents(exported), wanted, report, progress)
    elbo_only = Wanted(draws=wanted.draws, seed=wanted.seed)
    fp32 = measure_graphs(run, _contents(exported), elbo_only, report, progress)
    graphs = _contents(exported, variant)
    return measure_variant(run, graphs, wanted, fp32, report, progress)


def _parity(
    differences: dict[str, float],
    variant: ExportedGraph | None,
    inputs: InputsOfGraphs,
    batch_invariant: bool,
) -> Parity:
    """Builds the manifest's record of a successful comparison with torch."""
    return Parity(
        batches=BATCHES,
        max_abs_difference=differences,
        tolerance=TOLERANCES["cpu"],
        batch_invariant=batch_invariant,
        precision_difference={} if variant is None else differences_of(variant, inputs["decoder"]),
    )


def check_servable(bundle: Bundle) -> None:
    """Loads a bundle as a server would, including the comparison with its golden rows.

    Raises:
        ExportError: A server would refuse it.
    """
    try:
        load_model(bundle, Device("cpu"))
    except ModelRefused as error:
        raise ExportError(f"a server would refuse this bundle: {error}") from error
