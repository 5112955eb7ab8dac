"""`latentserve export` and `latentserve evaluate`."""

import argparse
import json
import sys
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bundle import BundleError
from export.arguments import evaluate_parser, export_parser
from export.errors import ExportError
from export.evaluate import Figures, Wanted, evaluate_path
from export.export import export
from export.reissue import reissue
from latentserve._cli.progress import ProgressBar
from latentserve._urls import is_url, without_secrets
from training.errors import TrainingError
from training.run_copy import run_here

_FAILURES = (BundleError, ExportError, TrainingError, OSError)


def main_export(arguments: list[str]) -> int:
    """Runs `latentserve export`.

    Returns:
        Exit status: 0, or 1 if no bundle was written.
    """
    options = export_parser().parse_args(arguments)
    try:
        with ProgressBar() as bar, run_here(options.run) as run:
            folder = _again(run, options, bar.line) or export(
                run,
                options.to,
                decoder=options.decoder,
                weights=options.weights,
                wanted=_wanted(options),
                data=options.data,
                key=options.sign,
                report=bar.line,
                progress=partial(bar.count, "NLL", unit="images"),
            )
    except _FAILURES as error:
        print(f"latentserve export: {error}", file=sys.stderr)
        return 1
    print(folder)
    return 0


def _again(bundle: Path, options: argparse.Namespace, report: Callable[[str], None]) -> Path | None:
    """Writes a bundle again, if it is one and no run, and returns the new one's folder.

    Raises:
        ExportError: An option is only for runs.
    """
    if not (bundle / "manifest.json").is_file():
        return None
    for name in ("decoder", "weights"):
        if (got := getattr(options, name)) != "fp32":
            raise ExportError(f"--{name}: got {got}; a bundle keeps its graphs")
    return reissue(bundle, options.to, data=options.data, key=options.sign, report=report)


def main_evaluate(arguments: list[str]) -> int:
    """Runs `latentserve evaluate`.

    Returns:
        Exit status: 0, or 1 if the measurement failed.
    """
    options = evaluate_parser().parse_args(arguments)
    try:
        with ProgressBar() as bar, run_here(options.path) as path:
            what, figures = evaluate_path(
                path,
                _wanted(options),
                options.data,
                report=bar.line,
                progress=partial(bar.count, "NLL", unit="images"),
            )
            if is_url(options.path):
                what = what.replace(str(path), without_secrets(options.path))
    except _FAILURES as error:
        print(f"latentserve evaluate: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps({"what": what} | figures.to_json(), indent=2))
    else:
        _print(what, figures)
    return 0


def _wanted(options: argparse.Namespace) -> Wanted:
    return Wanted(
        draws=options.draws,
        seed=options.seed,
        importance=options.importance,
        importance_images=options.importance_images,
        samples=options.samples,
        label_samples=max(2, options.samples // 10),
    )


def _print(what: str, figures: Figures) -> None:
    result, bound, judged = figures.evaluation, figures.bound, figures.generation
    protocol = textwrap.fill(figures.to_json()["protocol"], 88, break_on_hyphens=False)
    print(f"{what}\n{protocol}\n")
    if figures.plain:
        print(f"  reconstruction  {result.elbo:8.2f}  +- {result.elbo_stderr:.2f}")
        print(f"  active units    {result.active_units:8d}")
        print(f"\n{result.images} images; a plain autoencoder has no ELBO")
    else:
        print(f"  ELBO            {result.elbo:8.2f}  +- {result.elbo_stderr:.2f}")
        print(f"  bits/dimension  {result.bits_per_dimension:8.3f}")
        print(f"  reconstruction  {result.reconstruction:8.2f}")
        print(f"  KL              {result.kl:8.2f}")
        print(f"  active units    {result.active_units:8d}")
        draws = f"{result.draws} draw{'s' * (result.draws > 1)}"
        print(f"\n{result.images} images, {draws} each, seed {result.seed}")
    if bound is not None and figures.nll is not None:
        nll, stderr = figures.nll
        print(f"\n  NLL             {nll:8.2f}  +- {stderr:.2f}")
        print(f"  bits/dimension  {figures.nll_bits_per_dimension:8.3f}")
        print(f"\nimportance-weighted bound, K = {bound.draws}, seed {bound.seed}", end="")
        if bound.images < result.images:
            print(
                ": the ELBO above less the gap, which is\n"
                f"{bound.gap:.2f} +- {bound.gap_stderr:.2f} on {bound.images} of the images (the "
                f"bound of these alone: {bound.nll:.2f} +- {bound.stderr:.2f})"
            )
        else:
            print(", on all of these images")
    quality = figures.quality
    print(f"\n  PSNR            {quality.psnr:8.2f}  dB")
    print(f"  SSIM            {quality.ssim:8.3f}")
    print(f"\nreconstructions of {quality.reconstructed_images} test images, not binarized")
    if judged is not None:
        print(f"\n  classifier-FID  {judged.fid:8.2f}  (training images: {judged.fid_floor:.2f})")
        print(f"  class entropy   {judged.class_entropy:8.2f}  (ten even classes: 2.30)")
        print(f"  unconfident     {judged.unconfident:8.1%}  (below 0.8)")
        print(f"\n{judged.images} samples against the test images, seed {judged.seed}")
        if judged.label_agreement is not None:
            print(f"\n  FID by label    {judged.label_fid:8.2f}")
            print(
                f"  agreement       {judged.label_agreement:8.1%}  "
                f"(worst label: {judged.label_agreement_worst:.1%})"
            )
            print(f"\n{judged.label_images} samples requested for each label")
