"""`latentserve import`."""

import argparse
import sys
from pathlib import Path
from typing import Any

from bundle import BundleError, check_name, check_private_key
from bundle.layout import find_versions
from export.arguments import import_parser
from export.autoencoder import write_imported
from export.errors import ExportError
from export.imported_graphs import check_shapes
from export.sources.detect import source_module
from export.sources.imported import Imported, ImportOptions
from latentserve._cli.progress import ProgressBar


def main(arguments: list[str]) -> int:
    """Runs `latentserve import`.

    Returns:
        Exit status: 0, or 1 if no bundle was written.
    """
    options = import_parser().parse_args(arguments)
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
