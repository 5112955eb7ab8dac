"""Writes an autoencoder that was not trained here as a verified bundle."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pydantic
import torch
from numpy.typing import NDArray
from torch import nn

from bundle import (
    GraphName,
    LatentScaling,
    Manifest,
    Origin,
    Parity,
    Sizes,
    check_name,
    check_private_key,
    write_bundle,
)
from bundle.layout import find_versions
from export.card import model_card
from export.errors import ExportError
from export.export import check_servable
from export.golden import golden_file
from export.graphs import OPSET
from export.images import golden_images
from export.imported_graphs import adopted_graphs, check_shapes, exported_graphs
from export.invariance import BATCHES, golden_case, measure_rows, row_seconds, size_cases
from export.manifest import imported_manifest
from export.memory import bytes_per_pixel
from export.showing import imported_golden, show
from export.sources.imported import Imported, Likelihood, Posterior, Prior
from export.sources.wrap import BernoulliDecoder, Tupled
from export.variants import TOLERANCES
from export.verify import ADOPTED_OPSETS, verify_graphs

Report = Callable[[str], None]

# Rows that are compared with torch: fewer if a row takes more than `_FEW_SECONDS`.
_ROWS, _FEW_ROWS, _FEW_SECONDS = max(BATCHES), 3, 0.3


def export_autoencoder(
    encoder: nn.Module | None,
    decoder: nn.Module,
    model: Path,
    *,
    image_shape: tuple[int, int, int],
    latent_shape: tuple[int, ...],
    sizes: Sizes | None = None,
    posterior: Posterior | None = None,
    likelihood: Likelihood = "none",
    prior: Prior = "none",
    latent_scaling: LatentScaling | None = None,
    class_names: tuple[str, ...] = (),
    images: Path | None = None,
    licence: str = "",
    key: Path | None = None,
    report: Report = print,
) -> Path:
    """Exports any torch autoencoder as the next version of a model.

    Args:
        encoder: Maps images float32 [N, C, H, W] in [0, 1] to the posterior's mean, or to a tuple
            of its mean and log-variance, [N, *latent_shape] each; None for a decoder alone.
        decoder: Maps latents float32 [N, *latent_shape] to images [N, C, H, W] in [0, 1]; with a
            likelihood, to their logits.
        model: `MODELS/NAME`.
        image_shape: C (1 or 3), H and W; with `sizes`, those of the golden rows, which a server
            computes at every load.
        latent_shape: [D] or [c, h, w]; with `sizes`, of the golden rows.
        sizes: The sizes of images; None if all have `image_shape`.
        posterior: `gaussian` if the encoder returns a log-variance, `delta` if it does not, `none`
            without an encoder; told by what it returns if None.
        likelihood: `bernoulli` if the decoder returns the logits of Bernoulli pixels.
        prior: `standard` if latents can be sampled from N(0, I).
        latent_scaling: How a diffusion model expects the latents.
        class_names: Names of the classes of the training data.
        images: A folder of pictures for the golden rows and the card; None to draw some.
        licence: The licence of the weights.
        key: File of the private key to sign the bundle with; None to leave it unsigned.
        report: Called with a line for each step.

    Returns:
        The new bundle's folder.

    Raises:
        ExportError: A check failed; nothing was written.
        BundleError: The model's name is invalid, or the bundle cannot be written.
    """
    for module in (encoder, decoder):
        if module is not None:
            module.eval()  # a batch norm in training would learn from what it is tried with
    imported = Imported(
        image_shape=image_shape,
        latent_shape=latent_shape,
        origin=Origin(kind="torch", class_name=type(decoder).__name__, licence=licence),
        encoder=None if encoder is None else Tupled(encoder),
        decoder=BernoulliDecoder(decoder) if likelihood == "bernoulli" else Tupled(decoder),
        sizes=sizes,
        posterior=posterior or _posterior_of(encoder, image_shape),
        likelihood=likelihood,
        prior=prior,
        latent_scaling=latent_scaling,
        class_names=class_names,
    )
    return write_imported(imported, model, images=images, key=key, report=report)


def _posterior_of(encoder: nn.Module | None, image_shape: tuple[int, int, int]) -> Posterior:
    """Kind of the posterior, told by what an encoder returns; if it fails, `check_shapes` says."""
    if encoder is None:
        return "none"
    with torch.inference_mode(), suppress(Exception):
        answer = encoder(torch.zeros(2, *image_shape))
        return "gaussian" if isinstance(answer, tuple) and len(answer) == 2 else "delta"
    return "gaussian"


def write_imported(
    imported: Imported,
    model: Path,
    *,
    images: Path | None = None,
    key: Path | None = None,
    report: Report = print,
) -> Path:
    """Verifies and measures a model, and writes it as the next version.

    Args:
        imported: The model as its source gave it.
        model: `MODELS/NAME`.
        images: A folder of pictures for the golden rows and the card; None to draw some.
        key: File of the private key to sign the bundle with; None to leave it unsigned.
        report: Called with a line for each step.

    Returns:
        The new bundle's folder.

    Raises:
        ExportError: A check failed; nothing was written.
        BundleError: The model's name is invalid, or the bundle cannot be written.
    """
    check_name(model.name)
    if key is not None:
        check_private_key(key)
    check_shapes(imported)
    # Read first: a mistake in the folder's name is to end the command at once.
    golden_images(images, 1, imported.image_shape)
    graphs = adopted_graphs(imported) if imported.graphs else exported_graphs(imported, report)
    contents = {name: graph.content for name, graph in graphs.items()}
    stated: dict[str, Any] = {
        "image_shape": imported.image_shape,
        "latent_shape": imported.latent_shape,
        "sizes": imported.sizes,
    }
    shapes = Manifest.model_construct(**stated)
    row = {
        name: row_seconds(content, golden_case(name, shapes)) for name, content in contents.items()
    }
    seconds = max(row.values())
    rows = _ROWS if seconds <= _FEW_SECONDS else _FEW_ROWS
    cases = {
        name: size_cases(name, content, shapes, rows, row[name])
        for name, content in contents.items()
    }
    report(f"comparing {'batches' if imported.graphs else 'torch and onnxruntime'}{_at(cases)}")
    opsets = ADOPTED_OPSETS if imported.graphs else (OPSET,)
    differences = verify_graphs(graphs, cases, TOLERANCES["cpu"], opsets)
    report(f"they differ by at most {max(differences.values()):.1e}")
    report("measuring whether rows have the same bits in every batch")
    limit = measure_rows(contents, cases, row)
    if limit.reason:
        report(f"rows are to be computed one at a time. {limit.reason}")
    parity = Parity(
        batches=tuple(batch for batch in BATCHES if batch <= rows),
        max_abs_difference=differences,
        tolerance=TOLERANCES["cpu"],
        batch_invariant=limit.bit_invariant,
    )
    report("computing the golden rows and the pictures of the card")
    golden = golden_file(imported_golden(imported, graphs, images, seconds))
    metrics, pictures = show(imported, contents, images, seconds)
    if "psnr" in metrics:
        report(f"reconstructions: {metrics['psnr']:.2f} dB")
    report("measuring the memory of a row")
    memory = bytes_per_pixel(contents, shapes)

    def manifest_for(version: int) -> Manifest:
        return imported_manifest(
            model.name,
            version,
            imported,
            graphs=contents,
            golden=golden,
            parity=parity,
            metrics=metrics,
            rows_at_once=limit.rows,
            bytes_per_pixel=memory,
        )

    try:
        manifest_for(1)
    except pydantic.ValidationError as error:
        raise ExportError("; ".join(each["msg"] for each in error.errors())) from error
    report("loading it as a server does")
    files = {f"{name}.onnx": content for name, content in contents.items()}
    files |= {"golden.npz": golden} | pictures
    try:
        return write_bundle(
            model, files, manifest_for, {"README.md": model_card}, check=check_servable, key=key
        )
    except BaseException:
        if not find_versions(model):
            with suppress(OSError):
                model.rmdir()
        raise


def _at(cases: Mapping[GraphName, list[Mapping[str, NDArray[Any]]]]) -> str:
    """The sizes that are compared, for a line of the report."""
    shapes = [array.shape[2:] for case in cases.get("encoder", []) for array in case.values()]
    return f" at {', '.join(f'{h}x{w}' for h, w in shapes)}" if shapes else ""
