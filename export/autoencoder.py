"""Writes an autoencoder that was not trained here as a verified bundle."""

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bundle import (
    GraphName,
    LatentScaling,
    Manifest,
    Origin,
    Parity,
    Sizes,
    TensorSpec,
    check_name,
    tensors_of,
    write_bundle,
)
from bundle.layout import find_versions
from common import noise
from common.pixels import to_bytes, to_unit
from export.card import model_card
from export.errors import ExportError
from export.export import check_servable
from export.golden import golden_file, golden_rows
from export.graphs import OPSET, ExportedGraph, export_module
from export.images import golden_images
from export.invariance import BATCHES, SLOW_SECONDS, measure_rows, row_seconds, size_cases
from export.manifest import imported_manifest
from export.memory import bytes_per_pixel
from export.pictures import SEED, reconstructions_picture, sample_columns, samples_picture
from export.sources.imported import Imported, Likelihood, Posterior, Prior
from export.sources.wrap import BernoulliDecoder, Tupled
from export.variants import TOLERANCES
from export.verify import ADOPTED_OPSETS, check_structure, torch_answers, verify_graphs
from service.models.onnx import Device, Graph

Array = NDArray[np.float32]
Graphs = dict[GraphName, ExportedGraph]
Report = Callable[[str], None]

# Rows of a comparison, and of one whose rows take longer than so many seconds.
_ROWS, _FEW_ROWS, _FEW_SECONDS = max(BATCHES), 3, 0.3
# Maximum values of the images of the golden rows, and maximum rows.
_GOLDEN_VALUES, _GOLDEN_ROWS = 1 << 19, 8
# Images of the card and, where sizes are free, their height and width, unless one takes longer
# than so many seconds.
_SHOWN, _SHOWN_SIDE, _SHOWN_SECONDS = 5, 256, 5.0


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
        report: Called with a line for each step.

    Returns:
        The new bundle's folder.

    Raises:
        ExportError: A check failed; nothing was written.
        BundleError: The model's name is invalid, or the bundle cannot be written.
    """
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
    return write_imported(imported, model, images=images, report=report)


def _posterior_of(encoder: nn.Module | None, image_shape: tuple[int, int, int]) -> Posterior:
    """Kind of the posterior, told by what an encoder returns; if it fails, `check_shapes` says."""
    if encoder is None:
        return "none"
    with torch.inference_mode(), suppress(Exception):
        answer = encoder(torch.zeros(2, *image_shape))
        return "gaussian" if isinstance(answer, tuple) and len(answer) == 2 else "delta"
    return "gaussian"


def write_imported(
    imported: Imported, model: Path, *, images: Path | None = None, report: Report = print
) -> Path:
    """Verifies and measures a model, and writes it as the next version.

    Args:
        imported: The model as its source gave it.
        model: `MODELS/NAME`.
        images: A folder of pictures for the golden rows and the card; None to draw some.
        report: Called with a line for each step.

    Returns:
        The new bundle's folder.

    Raises:
        ExportError: A check failed; nothing was written.
        BundleError: The model's name is invalid, or the bundle cannot be written.
    """
    check_name(model.name)
    check_shapes(imported)
    # Read first: a mistake in the folder's name is to end the command at once.
    golden_images(images, 1, imported.image_shape)
    graphs = _adopted(imported) if imported.graphs else _exported(imported, report)
    contents = {name: graph.content for name, graph in graphs.items()}
    stated: dict[str, Any] = {
        "image_shape": imported.image_shape,
        "latent_shape": imported.latent_shape,
        "sizes": imported.sizes,
    }
    shapes = Manifest.model_construct(**stated)
    seconds = max(
        row_seconds(content, size_cases(name, content, shapes, rows=1)[0])
        for name, content in contents.items()
    )
    rows = _ROWS if seconds <= _FEW_SECONDS else _FEW_ROWS
    cases = {name: size_cases(name, content, shapes, rows) for name, content in contents.items()}
    report(f"comparing {'batches' if imported.graphs else 'torch and onnxruntime'}{_at(cases)}")
    opsets = ADOPTED_OPSETS if imported.graphs else (OPSET,)
    differences = verify_graphs(graphs, cases, TOLERANCES["cpu"], opsets)
    report(f"they differ by at most {max(differences.values()):.1e}")
    report("measuring whether rows have the same bits in every batch")
    limit = measure_rows(contents, cases)
    if limit.reason:
        report(f"rows are to be computed one at a time. {limit.reason}")
    parity = Parity(
        batches=tuple(batch for batch in BATCHES if batch <= rows),
        max_abs_difference=differences,
        tolerance=TOLERANCES["cpu"],
        batch_invariant=limit.bit_invariant,
    )
    report("computing the golden rows and the pictures of the card")
    golden = golden_file(_golden(imported, graphs, images, seconds))
    metrics, pictures = _show(imported, contents, images, seconds)
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
            parity=None if imported.graphs else parity,
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
            model, files, manifest_for, {"README.md": model_card}, check=check_servable
        )
    except BaseException:
        if not find_versions(model):
            with suppress(OSError):
                model.rmdir()
        raise


def check_shapes(imported: Imported) -> None:
    """Runs the modules once, at the golden size, and checks what they return.

    Raises:
        ExportError: A module cannot be run, or returns tensors of other shapes than it should, or
            values that are not finite.
    """
    if imported.image_shape[0] not in (1, 3):
        raise ExportError(f"images of {imported.image_shape[0]} channels, wanted 1 or 3")
    if imported.graphs:
        return
    if imported.decoder is None:
        raise ExportError("there is no decoder")
    for name, (inputs, outputs) in _specs(imported).items():
        module = imported.encoder if name == "encoder" else imported.decoder
        assert module is not None
        example = _example(imported, name, golden=True)
        try:
            with torch.inference_mode():
                answers = module(example)
        except Exception as error:
            text = _first_line(error)
            raise ExportError(f"{name}: torch cannot run it: {text}") from error
        got = [list(answer.shape) for answer in answers]
        wanted = [[len(example), *_sides(imported, spec)] for spec in outputs]
        if got != wanted:
            raise ExportError(
                f"{name}: it maps {inputs[0].name} {list(example.shape)} to {_listed(got)}, wanted "
                f"{_listed(wanted)}: {' and '.join(spec.name for spec in outputs)}"
            )
        for spec, answer in zip(outputs, answers, strict=True):
            if not torch.isfinite(answer).all():
                raise ExportError(f"{name}.{spec.name}: torch returns values that are not finite")


def _listed(shapes: list[list[int]]) -> str:
    return " and ".join(map(str, shapes))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _specs(
    imported: Imported,
) -> dict[GraphName, tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]]:
    return tensors_of(
        imported.image_shape,
        imported.latent_shape,
        free=imported.sizes is not None,
        posterior=imported.posterior,
        logits=imported.likelihood != "none",
    )


def _sides(imported: Imported, spec: TensorSpec) -> tuple[int, ...]:
    """Shape of a row of a tensor at the golden size."""
    return imported.image_shape if spec.name in ("image", "logits") else imported.latent_shape


def _example(imported: Imported, name: GraphName, *, golden: bool) -> Tensor:
    """Two rows of the input of a graph: from one, the exporter may infer a constant batch size.

    Args:
        imported: The model.
        name: Name of the graph.
        golden: Whether in the golden size; else, where sizes are free, in one of another height
            than width, so that the exporter takes neither for the other.
    """
    channels, height, width = imported.image_shape
    latent = imported.latent_shape
    if imported.sizes is not None and not golden:
        step, factor = imported.sizes.multiple, imported.sizes.factor
        side = max(4, imported.sizes.least // step)
        height, width = side * step, (side + 2) * step
        latent = (latent[0], height // factor, width // factor)
    shape = (channels, height, width) if name == "encoder" else latent
    generator = torch.Generator().manual_seed(0)
    draw = torch.rand if name == "encoder" else torch.randn
    return draw(2, *shape, generator=generator)


def _exported(imported: Imported, report: Report) -> Graphs:
    graphs: Graphs = {}
    for name, (inputs, outputs) in _specs(imported).items():
        report(f"exporting the {name}")
        module = imported.encoder if name == "encoder" else imported.decoder
        assert module is not None
        example = _example(imported, name, golden=False)
        free = (*inputs, *outputs) if imported.sizes is not None else ()
        named = tuple(spec.name for spec in outputs)
        try:
            graphs[name] = export_module(
                name, module.eval(), {inputs[0].name: example}, named, free
            )
        except Exception as error:
            text = _first_line(error)
            raise ExportError(f"{name}: torch.onnx cannot export it: {text}") from error
        # Before it is run: a module that counts its rows has lost the batch axis.
        check_structure(graphs[name])
    return graphs


class _RowByRow(nn.Module):
    """Stands for the torch module of a graph that was adopted: its rows computed one by one."""

    def __init__(self, content: bytes, inputs: tuple[str, ...], outputs: tuple[str, ...]):
        super().__init__()
        self._graph = Graph(content, Device("cpu"), rows=1)
        self._inputs, self._outputs = inputs, outputs

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        arrays = dict(zip(self._inputs, (tensor.numpy() for tensor in inputs), strict=True))
        rows = [
            self._graph.run({name: array[row : row + 1] for name, array in arrays.items()})
            for row in range(len(inputs[0]))
        ]
        return tuple(
            torch.from_numpy(np.concatenate([row[name] for row in rows])) for name in self._outputs
        )


def _adopted(imported: Imported) -> Graphs:
    """The graphs of a source that has some, checked so far that onnxruntime can load them.

    Raises:
        ExportError: A graph is missing, has another structure than the contract's, or does not
            load.
    """
    graphs: Graphs = {}
    for name, (inputs, outputs) in _specs(imported).items():
        if name not in imported.graphs:
            raise ExportError(f"there is no {name}")
        names = (tuple(spec.name for spec in inputs), tuple(spec.name for spec in outputs))
        content, free = imported.graphs[name], imported.sizes is not None
        unbound = ExportedGraph(name, nn.Identity(), *names, content, free)
        check_structure(unbound, opsets=ADOPTED_OPSETS)
        try:
            module = _RowByRow(content, *names)
        except Exception as error:
            text = _first_line(error)
            raise ExportError(f"{name}: onnxruntime cannot load it: {text}") from error
        graphs[name] = ExportedGraph(name, module, *names, content, free)
    return graphs


def _at(cases: Mapping[GraphName, list[Mapping[str, NDArray[Any]]]]) -> str:
    """The sizes that are compared, for a line of the report."""
    shapes = [array.shape[2:] for case in cases.get("encoder", []) for array in case.values()]
    return f" at {', '.join(f'{h}x{w}' for h, w in shapes)}" if shapes else ""


def _golden(
    imported: Imported, graphs: Graphs, images: Path | None, seconds: float
) -> dict[str, NDArray[Any]]:
    """The golden rows by "graph.tensor": few, since a server computes them at every load."""
    most = _GOLDEN_VALUES // math.prod(imported.image_shape)
    rows = 1 if seconds > SLOW_SECONDS else max(1, min(_GOLDEN_ROWS, most))
    inputs: dict[str, NDArray[Any]] = {}
    drawn = _drawn_latents(imported, rows)
    if "encoder" in graphs:
        inputs["image"] = to_unit(golden_images(images, rows, imported.image_shape))
        mean = torch_answers(graphs["encoder"], inputs)["mean"]
        half = len(mean) // 2 if imported.prior == "standard" else 0
        inputs["z"] = np.concatenate([mean[half:], drawn[:half]])
    else:
        inputs["z"] = drawn
    return golden_rows(graphs, inputs)


def _drawn_latents(imported: Imported, rows: int) -> Array:
    """Draws from N(0, I), scaled back by `latent_scaling` to what the decoder takes."""
    flat = noise.standard_normal(0, 0, rows, math.prod(imported.latent_shape))
    z = flat.reshape(rows, *imported.latent_shape)
    scaling = imported.latent_scaling
    if scaling is None or imported.prior == "standard":
        return z
    if scaling.scale is not None:
        return (z / scaling.scale + scaling.shift).astype(np.float32)
    std, mean = (np.array(each, np.float32)[:, None, None] for each in (scaling.std, scaling.mean))
    return z * std + mean


def _show(
    imported: Imported,
    contents: Mapping[GraphName, bytes],
    images: Path | None,
    seconds: float,
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The PSNR of reconstructions, and the pictures of the card, PNG files by name."""
    sessions = {name: Graph(content, Device("cpu"), rows=1) for name, content in contents.items()}
    metrics: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    if imported.encoder is not None or "encoder" in contents:
        originals = golden_images(images, _SHOWN, _shown_shape(imported, seconds))
        mean = sessions["encoder"].run({"image": to_unit(originals)}, ("mean",))["mean"]
        pixels = _pixels(sessions["decoder"], mean)
        files |= reconstructions_picture(originals, pixels)
        height, width = originals.shape[2:]
        source = "drawn from a seed" if images is None else "of a folder"
        metrics |= {
            "psnr": round(_psnr(pixels, originals), 3),
            "images": len(originals),
            "protocol": f"PSNR of the reconstructions of {len(originals)} images of {height} x "
            f"{width} pixels {source}: {_psnr(pixels, originals):.2f} dB",
            "measured_on": "onnxruntime",
        }
    if imported.prior == "standard":
        count = sample_columns(imported.image_shape[1:]) ** 2
        flat = noise.standard_normal(SEED, 0, count, math.prod(imported.latent_shape))
        z = flat.reshape(count, *imported.latent_shape)
        files |= samples_picture(_pixels(sessions["decoder"], z))
    return metrics, files


def _shown_shape(imported: Imported, seconds: float) -> tuple[int, int, int]:
    """Shape of the images of the card: large ones tell more of a model of free size."""
    channels, height, width = imported.image_shape
    if imported.sizes is None:
        return imported.image_shape
    step = imported.sizes.multiple
    side = max(height, width, _SHOWN_SIDE // step * step)
    slow = seconds * side**2 / (height * width) > _SHOWN_SECONDS
    if slow or side**2 > imported.sizes.most_pixels:
        return imported.image_shape
    return (channels, side, side)


def _pixels(decoder: Graph, z: Array) -> NDArray[np.uint8]:
    return to_bytes(np.clip(decoder.run({"z": z}, ("image",))["image"], 0, 1))


def _psnr(pixels: NDArray[np.uint8], originals: NDArray[np.uint8]) -> float:
    """Mean over images of the peak signal-to-noise ratio, in dB; at most 100."""
    errors = ((pixels.astype(np.float64) - originals) / 255) ** 2
    return float(np.mean(-10 * np.log10(np.maximum(errors.mean(axis=(1, 2, 3)), 1e-10))))
