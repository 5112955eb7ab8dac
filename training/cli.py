"""Command line of `latentserve train`."""

import argparse
import re
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from common.pictures import Fit
from latentserve._cli.arguments import local_folder, positive, store_url, uint64
from latentserve._cli.common import HelpFormatter
from latentserve._cli.interrupt import Interrupt
from latentserve._cli.progress import ProgressBar, duration
from training.budget import parse_duration
from training.data.fetched import STAGE
from training.data.sources import SOURCES
from training.data.spec import DataSpec
from training.dry_run import dry_run
from training.errors import ConfigError, OtherProcessError, TrainingError
from training.parallel import Parallel
from training.presets import PRESETS
from training.progress import Observer, Progress
from training.run_folder import RunFolder
from training.train import Request, train

_EXAMPLES = """\
  latentserve train --data mnist --budget 3m --out runs/digits
  latentserve train --data folder:pictures --image-size 64 --out runs/pictures
  latentserve train --data folder:s3://bucket/photos --out runs/photos --copy-to s3://bucket/runs/1
  latentserve train --preset dense --data mnist --dry-run
  torchrun --nproc-per-node 2 -m latentserve train --preset conv --out runs/conv"""


def parser() -> argparse.ArgumentParser:
    """Argument parser of `latentserve train`."""
    width = max(map(len, PRESETS))
    presets = "\n".join(f"  {name:{width}} {preset.summary}" for name, preset in PRESETS.items())
    result = argparse.ArgumentParser(
        prog="latentserve train",
        # The formatter's `prog` ends in [options]. A run needs --out, a dry run alone does not.
        usage="%(prog)s --out FOLDER",
        description="Train a variational autoencoder into a run folder, for `latentserve export`.",
        epilog=f"presets:\n{presets}\n\nexamples:\n{_EXAMPLES}",
        formatter_class=HelpFormatter,
    )
    result.add_argument(
        "--preset",
        help="architecture and objective, see below (default: picked by the size of the images)",
    )
    result.add_argument(
        "--data",
        default="mnist",
        metavar="DATA",
        help=f"data set: {', '.join(sorted(SOURCES))} (downloaded once, to LATENTSERVE_DATA_DIR or "
        "the user's cache folder), folder:PATH (images of your own, each subfolder a class), "
        "parquet:PATH (a column of encoded images, a file or a folder of them), "
        "npy:IMAGES[,LABELS[,GROUPS]] or idx:IMAGES[,LABELS]; paths may be URLs such as "
        "s3://bucket/photos (default: mnist)",
    )
    result.add_argument(
        "--image-size",
        type=image_size,
        metavar="PIXELS",
        help="size that images are resized to: the side of a square, or height and width such as "
        "96x64 (default: their own size)",
    )
    result.add_argument(
        "--fit",
        choices=get_args(Fit),
        default="crop",
        help="crop images to the centre, or pad them with the background, where --image-size "
        "changes their aspect ratio (default: crop)",
    )
    result.add_argument(
        "--background",
        default="white",
        metavar="COLOUR",
        help="colour behind transparent pixels and around padded images, #rrggbb or a name "
        "(default: white)",
    )
    result.add_argument(
        "--channels",
        type=int,
        choices=(1, 3),
        help="1 for grey, 3 for RGB (default: as the images are)",
    )
    result.add_argument(
        "--bad-files",
        choices=("refuse", "skip"),
        default="refuse",
        help="what to do about damaged pictures (default: refuse)",
    )
    result.add_argument(
        "--augment",
        metavar="NAMES",
        help="random changes of the training images: flip (left to right), shift (by up to a 16th "
        "of the sides), warp (turned, slanted and stretched a little), elastic (distorted "
        "smoothly), or several, as in flip,shift (default: those of the preset)",
    )
    length = result.add_mutually_exclusive_group()
    length.add_argument(
        "--budget",
        default="3m",
        metavar="DURATION",
        help="CPU time per thread, such as 90s, 3m or 1.5h; converted to a number of steps by "
        "timing a few at the start (default: 3m)",
    )
    length.add_argument(
        "--steps",
        type=positive,
        metavar="N",
        help="number of training steps of the autoencoder; a learned prior is fitted in further "
        "steps, not counted here (default: what the budget allows)",
    )
    result.add_argument(
        "--out",
        type=local_folder,
        metavar="FOLDER",
        help="run folder to write; required but by --dry-run",
    )
    result.add_argument(
        "--copy-to",
        type=store_url,
        metavar="URL",
        help="folder in object storage, such as s3://bucket/runs/x, that the run folder is copied "
        "to after each checkpoint; --resume fetches it where there is no --out",
    )
    result.add_argument(
        "--init",
        type=local_folder,
        metavar="RUN",
        help="run folder whose averaged weights the new run begins with, or a bundle; blocks and "
        "couplings that it lacks are added without effect at first (default: random weights)",
    )
    result.add_argument(
        "--seed",
        type=uint64,
        metavar="N",
        help="seed of the initial weights, the order of the images and all noise (default: 0)",
    )
    result.add_argument(
        "--set",
        dest="settings",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="override a setting of the preset, such as beta=4 or layers=512:relu,256:relu; may be "
        "repeated",
    )
    result.add_argument(
        "--device",
        default="auto",
        help="device to train on: auto, cpu, cuda or cuda:N (default: auto)",
    )
    result.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="dtype that the networks compute in (default: float32)",
    )
    result.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in --out, or start it if there is none",
    )
    result.add_argument(
        "--dry-run",
        action="store_true",
        help="print what would be trained and what it would take (layers, parameters, memory, time "
        "of an epoch), after timing a few steps; write nothing",
    )
    return result


def main(arguments: list[str]) -> int:
    """Runs `latentserve train`.

    Returns:
        Exit status: 0, 1 if training failed, 2 if a setting is wrong, 130 if SIGINT or SIGTERM
        interrupted it.
    """
    parsing = parser()
    options = parsing.parse_args(arguments)
    if options.out is None and not options.dry_run:
        parsing.error("the following arguments are required: --out")
    leads = Parallel.from_environment().leads
    bar = ProgressBar()
    status, problem, said = 0, None, ""
    request = None

    def show(progress: Progress) -> None:
        # The share of the time, not of the steps, since steps take longer in some phases.
        bar.show(progress.share, _numbers(progress, step=not bar.on_terminal))

    def show_loading(stage: str, done: int, total: int) -> None:
        bar.count(stage, done, total, "files" if stage == STAGE else "images")

    try:
        with Interrupt(signal.SIGINT, signal.SIGTERM) as interrupt:
            observer = Observer(bar.line, show, interrupt.held, show_loading)
            request = _request(options)
            said = (dry_run if options.dry_run else _train)(request, observer)
    except (TrainingError, OSError) as error:
        status = 2 if isinstance(error, ConfigError) else 1
        # Of several processes, all find the same wrong with the options: one says it.
        if not isinstance(error, OtherProcessError) and (leads or request is not None):
            problem = str(error)
    except KeyboardInterrupt:
        status = 130
        if leads:
            problem = (
                "stopped"
                if options.dry_run
                else "stopped; the same command with --resume continues from there"
            )
    finally:
        bar.leave()
    if problem is not None:
        print(f"latentserve train: {problem}", file=sys.stderr)
    elif status == 0 and leads:
        print(said)
    return status


def _train(request: Request, observer: Observer) -> str:
    """Trains; returns the lines that sum the run up, empty in a process that does not lead."""
    metrics = train(request, observer)
    if not metrics:
        return ""
    model = RunFolder(request.out).read_config().model
    return f"{_summary(metrics, model.posterior)}\nrun folder: {request.out}"


def _request(options: argparse.Namespace) -> Request:
    seed = [] if options.seed is None else [f"seed={options.seed}"]
    return Request(
        preset=options.preset,
        data=DataSpec.parse(
            options.data,
            options.image_size,
            options.channels,
            options.bad_files,
            options.fit,
            options.background,
        ),
        out=options.out or Path(),
        steps=options.steps,
        budget=parse_duration(options.budget),
        settings=(
            *options.settings,
            *([] if options.augment is None else [f"augment={options.augment}"]),
            *seed,
        ),
        resume=options.resume,
        device=options.device,
        bfloat16=options.precision == "bfloat16",
        copy_to=options.copy_to,
        init=options.init,
    )


def image_size(text: str) -> tuple[int, int]:
    """Parses the size of images: the side of a square, or height and width as in `96x64`.

    Raises:
        argparse.ArgumentTypeError: `text` has another form.
    """
    match = re.fullmatch(r"([1-9]\d{0,5})(?:x([1-9]\d{0,5}))?", text, re.ASCII)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"got {text}, wanted a whole number from 1, or a height and a width such as 96x64"
        )
    return int(match[1]), int(match[2] or match[1])


def _summary(metrics: Mapping[str, Any], posterior: str) -> str:
    images = f"({metrics['images']} images, lower is better)"
    reconstruction = f"reconstruction {metrics['reconstruction']:.2f}"
    # Runs of older versions have fewer figures.
    bits, quality = "", ""
    if "bits_per_dimension" in metrics:
        bits = f"; {metrics['bits_per_dimension']:.3f} bits per dimension"
    if "psnr" in metrics:
        quality = f"; PSNR {metrics['psnr']:.2f} dB, SSIM {metrics['ssim']:.3f}"
    if posterior == "delta":
        return f"test {reconstruction} nats {images}: a plain autoencoder has no ELBO{quality}"
    return (
        f"test ELBO {metrics['elbo']:.2f} nats = {reconstruction} + KL {metrics['kl']:.2f} "
        f"{images}{bits}{quality}"
    )


def _numbers(progress: Progress, *, step: bool) -> str:
    """Formats the state and the latest results of a run as one line, for the progress display.

    Args:
        progress: The progress of the run.
        step: Whether to include the step number. It does not fit next to a progress bar on a
            terminal of 80 columns.
    """
    numbers = progress.numbers
    where = f"{progress.phase} {progress.step}/{progress.total_steps}" if step else progress.phase
    if "elbo" in numbers:
        shown = (
            f"ELBO {numbers['elbo']:.1f} rec {numbers['reconstruction']:.1f} KL {numbers['kl']:.1f}"
        )
    else:
        shown = f"-log p(z) {numbers['prior_nll']:.2f}"
    if "validation_elbo" in numbers:
        shown += f" val {numbers['validation_elbo']:.1f}"
    if numbers["skipped"]:
        shown += f" skipped {numbers['skipped']:.0f}"
    left = duration(progress.seconds_left)
    return f"{where} {shown} {progress.rows_per_second:.0f}/s, {left} left"
