"""`latentserve train`."""

import argparse
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentserve._cli.interrupt import Interrupt
from latentserve._cli.progress import ProgressBar, duration
from training.arguments import parser
from training.budget import parse_duration
from training.data.fetched import STAGE
from training.data.spec import DataSpec
from training.dry_run import dry_run
from training.errors import ConfigError, OtherProcessError, TrainingError
from training.parallel import Parallel
from training.progress import Observer, Progress
from training.run_folder import RunFolder
from training.train import Request, train


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
