"""`latentserve import`."""

import argparse
import sys
from pathlib import Path
from typing import Any

from bundle import BundleError, check_name, check_private_key
from bundle.layout import find_versions
from export.autoencoder import write_imported
from export.cli import add_sign
from export.errors import ExportError
from export.imported_graphs import check_shapes
from export.sources.detect import KINDS, source_module
from export.sources.imported import Imported, ImportOptions
from latentserve._cli.arguments import local_folder, number, positive_number, size, whole
from latentserve._cli.common import HelpFormatter
from latentserve._cli.progress import ProgressBar


def main(arguments: list[str]) -> int:
    """Runs `latentserve import`.

    Returns:
        Exit status: 0, or 1 if no bundle was written.
    """
    options = _parser().parse_args(arguments)
    try:
        with ProgressBar() as bar:
            check_name(options.to.name)
            if options.sign is not None:
                check_private_key(options.sign)
            _check_free(options.to, options.new_version)
            kind, module = source_module(options.source, options.kind)
            bar.line(f"reading {options.source} as {kind}")
            imported = module.load(options.source, _stated(options))
            if options.shift_factor is not None and imported.latent_scaling is None:
                raise ExportError(
                    f"--shift-factor: got {options.shift_factor:g} and no scale, wanted "
                    "--scaling-factor too, since the source states none"
                )
            for note in imported.notes:
                bar.line(note)
            if options.dry_run:
                check_shapes(imported)
                print(_plan(imported, options.to))
                return 0
            folder = write_imported(
                imported, options.to, images=options.images, key=options.sign, report=bar.line
            )
    except (BundleError, ExportError, OSError) as error:
        print(f"latentserve import: {error}", file=sys.stderr)
        return 1
    print(folder)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="latentserve import",
        description="Import an autoencoder that others have trained, as a bundle: ONNX graphs,\n"
        "verified against torch. What can be imported: docs/import.md.",
        epilog="examples:\n"
        "  latentserve import sdxl/vae --to models/sdxl\n"
        "  latentserve import taef2_decoder.pth --to models/taef2 --licence MIT\n"
        "  latentserve import mine.py:make --to models/mine --size 64 --trust-code",
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("source", type=Path, metavar="SOURCE", help="folder or file, or FILE.py:FACTORY")
    add(
        "--to",
        type=local_folder,
        required=True,
        metavar="MODELS/NAME",
        help="folder of the model, which must not be there yet",
    )
    add(
        "--new-version",
        action="store_true",
        help="if the model is there, add a version to it",
    )
    add(
        "--kind",
        choices=("auto", *sorted(KINDS)),
        default="auto",
        help="kind of the source (default: auto, told by its content)",
    )
    add(
        "--config",
        type=Path,
        metavar="FILE",
        help="configuration of a source that is one file of weights",
    )
    add(
        "--size",
        type=_size,
        metavar="N|HxW|any",
        help="height and width of all images, or any (default: any, where the model allows it)",
    )
    add("--scaling-factor", type=positive_number, metavar="X", help="scale of scaled latents")
    add("--shift-factor", type=number, metavar="X", help="shift of scaled latents")
    add("--prior", choices=("standard", "none"), help="whether N(0, I) is the prior to sample from")
    add(
        "--likelihood",
        choices=("bernoulli", "none"),
        help="whether the decoder's pixels are Bernoulli, with which images can be scored",
    )
    add(
        "--range",
        choices=("unit", "signed"),
        help="range of the source's pixels: unit for [0, 1], signed for [-1, 1]; the server's are "
        "always [0, 1] (default: what the kind has, unit for onnx and torch)",
    )
    add("--decoder-only", action="store_true", help="leave out the encoder")
    add(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="pictures for the golden rows and the model card (default: drawn from a seed)",
    )
    add_sign(parser)
    add("--licence", default="", metavar="NAME", help="licence of the weights, for the model card")
    add("--dry-run", action="store_true", help="read the source, and print what would be made")
    add(
        "--trust-code",
        action="store_true",
        help="allow pickles and Python files of the source to run code",
    )
    return parser


def _stated(options: argparse.Namespace) -> ImportOptions:
    return ImportOptions(
        config=options.config,
        size=options.size,
        scaling_factor=options.scaling_factor,
        shift_factor=options.shift_factor,
        prior=options.prior,
        likelihood=options.likelihood,
        signed=None if options.range is None else options.range == "signed",
        decoder_only=options.decoder_only,
        licence=options.licence,
        trust_code=options.trust_code,
    )


def _check_free(model: Path, new_version: bool) -> None:
    """Refuses a name that is taken, unless the options say otherwise.

    Raises:
        ExportError: The model has versions, or the path is no folder.
    """
    if model.exists() and not model.is_dir():
        raise ExportError(f"{model}: there is a file of this name")
    if not new_version and (versions := find_versions(model)):
        raise ExportError(
            f"{model}: the name is taken, by version {versions[-1]}; wanted another, or "
            f"--new-version to add version {versions[-1] + 1}"
        )


def _size(text: str) -> tuple[int, int] | str:
    if text == "any":
        return text
    return size(text) if "x" in text else (whole(1, 10**9 - 1)(text),) * 2


def _plan(imported: Imported, model: Path) -> str:
    """What would be made, for --dry-run."""
    channels, height, width = imported.image_shape
    sizes, scaling = imported.sizes, imported.latent_scaling
    images = f"{channels} x {height} x {width}"
    latents = " x ".join(map(str, imported.latent_shape))
    if sizes is not None:
        images = f"{channels} channels, any height and width in multiples of {sizes.multiple}"
        latents = f"{imported.latent_shape[0]} channels, {sizes.factor} times smaller"
    scaled = "not known: no scaled latents"
    if scaling is not None:
        scaled = f"{_shifted(scaling.shift)} * {scaling.scale:g}" if scaling.scale else "mean, std"
    origin = imported.origin
    graphs = "adopted as they are" if imported.graphs else "exported from torch"
    rows: dict[str, Any] = {
        "model": model,
        "source": f"{origin.class_name or 'a model'} of {origin.kind}",
        "licence": origin.licence or "not stated: --licence",
        "images": images,
        "latents": latents,
        "posterior": {"none": "none: no encoder, no Encode and Reconstruct"}.get(
            imported.posterior, imported.posterior
        ),
        "likelihood": {"none": "none: no Score"}.get(imported.likelihood, imported.likelihood),
        "prior": {"none": "none: no Sample"}.get(imported.prior, imported.prior),
        "scaled": scaled,
        "graphs": graphs,
    }
    return "\n".join(f"{name + ':':12}{value}" for name, value in rows.items())


def _shifted(shift: float) -> str:
    return f"(latent - {shift:g})" if shift else "latent"
