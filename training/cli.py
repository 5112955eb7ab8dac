"""`latentserve train`."""

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from latentserve._cli.arguments import positive
from training.budget import parse_duration
from training.data.download import SOURCES
from training.data.spec import DataSpec
from training.errors import ConfigError, OtherProcessError, TrainingError
from training.parallel import Parallel
from training.presets import PRESETS
from training.progress import Observer, Progress
from training.run_folder import RunFolder
from training.train import Request, train

# As wide as what is told leaves room for, which in 80 columns is not much.
_BAR = "{percentage:3.0f}% |{bar}| {desc}"
_LINE_SECONDS = 15.0
_EXAMPLES = """\
  latentserve train --preset dense --data mnist --budget 3m --out runs/dense
  latentserve train --preset conv --data folder:pictures --image-size 32 --out runs/pictures
  torchrun --nproc-per-node 2 -m latentserve train --preset conv --out runs/conv"""


def parser() -> argparse.ArgumentParser:
    """The arguments of `latentserve train`."""
    width = max(map(len, PRESETS))
    presets = "\n".join(f"  {name:{width}} {preset.summary}" for name, preset in PRESETS.items())
    result = argparse.ArgumentParser(
        prog="latentserve train",
        description="Train a variational autoencoder and leave a run folder to export.",
        epilog=f"presets:\n{presets}\n\nexamples:\n{_EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--preset", default="dense", help="what to train (default: dense)")
    result.add_argument(
        "--data",
        default="mnist",
        metavar="DATA",
        help=f"{', '.join(sorted(SOURCES))} (cached in LATENTSERVE_DATA_DIR or the user's cache "
        "folder); folder:PATH, images of your own, their subfolders as classes; or "
        "idx:IMAGES[,LABELS] (default: mnist)",
    )
    result.add_argument(
        "--image-size",
        type=positive,
        metavar="PIXELS",
        help="side of the square that images are resized to, cut out of the middle "
        "(default: as they are)",
    )
    result.add_argument(
        "--channels",
        type=int,
        choices=(1, 3),
        help="1 for grey, 3 for RGB (default: what the images have)",
    )
    result.add_argument(
        "--bad-files",
        choices=("refuse", "skip"),
        default="refuse",
        help="what to do about files of a folder that are not whole images (default: refuse)",
    )
    length = result.add_mutually_exclusive_group()
    length.add_argument(
        "--budget",
        default="3m",
        help="time to spend, such as 90s, 3m, 1.5h, in CPU time per thread; timed on a few steps "
        "first and turned into a number of steps (default: 3m)",
    )
    length.add_argument("--steps", type=positive, help="the number of steps of the autoencoder")
    result.add_argument("--out", type=Path, required=True, help="the run folder to write")
    result.add_argument(
        "--set",
        dest="settings",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="change one setting of the preset, such as beta=4 or layers=512:relu,256:relu",
    )
    result.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)"
    )
    result.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="what the networks compute in (default: float32)",
    )
    result.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --out; begin it where there is none",
    )
    return result


def main(arguments: list[str]) -> int:
    """Runs the command.

    Returns:
        The exit status: 0, 1 where training failed, 2 where a setting is wrong, 130
        where it was interrupted by SIGINT or SIGTERM.
    """
    options = parser().parse_args(arguments)
    leads = Parallel.from_environment().leads
    interrupts = _Interrupts()
    bar = _Bar()
    status, said, metrics = 0, None, {}
    try:
        metrics = train(_request(options), Observer(bar.line, bar.update, interrupts.held_back))
    except (TrainingError, OSError) as error:
        status = 2 if isinstance(error, ConfigError) else 1
        if not isinstance(error, OtherProcessError):
            said = str(error)
    except KeyboardInterrupt:
        status = 130
        if leads:
            said = "stopped; the same command with --resume goes on from there"
    finally:
        bar.close()
        interrupts.restore()
    if said is not None:
        print(f"latentserve train: {said}", file=sys.stderr)
    elif status == 0 and leads:
        model = RunFolder(options.out).read_config().model
        print(f"{_summary(metrics, model.posterior)}\nrun folder: {options.out}")
    return status


def _request(options: argparse.Namespace) -> Request:
    return Request(
        preset=options.preset,
        data=DataSpec.parse(options.data, options.image_size, options.channels, options.bad_files),
        out=options.out,
        steps=options.steps,
        budget=parse_duration(options.budget),
        settings=tuple(options.settings),
        resume=options.resume,
        device=options.device,
        bfloat16=options.precision == "bfloat16",
    )


def _summary(metrics: Mapping[str, Any], posterior: str) -> str:
    images = f"({metrics['images']} images, lower is better)"
    reconstruction = f"reconstruction {metrics['reconstruction']:.2f}"
    if posterior == "delta":
        return f"test {reconstruction} nats {images}: a plain autoencoder has no ELBO"
    return (
        f"test ELBO {metrics['elbo']:.2f} nats = {reconstruction} + KL {metrics['kl']:.2f} {images}"
    )


class _Interrupts:
    """SIGINT and SIGTERM, which `docker stop` and schedulers send: both end the command.

    While steps are done the first one waits for the end of the step, so that what
    is kept is never half a step; a second one does not wait.
    """

    def __init__(self) -> None:
        self._holding = self._asked = False
        self._before = {
            number: signal.signal(number, self._handle)
            for number in (signal.SIGINT, signal.SIGTERM)
        }

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def held_back(self) -> Iterator[Callable[[], bool]]:
        self._holding = True
        try:
            yield lambda: self._asked
        finally:
            self._holding = False

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        if not self._holding or self._asked:
            raise KeyboardInterrupt
        self._asked = True


class _Bar:
    """The live progress line; where stderr is no terminal, a line now and then."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._last_line = time.monotonic()

    def line(self, text: str) -> None:
        self.close()
        print(text, file=sys.stderr, flush=True)

    def update(self, progress: Progress) -> None:
        if not sys.stderr.isatty():
            if time.monotonic() - self._last_line > _LINE_SECONDS:
                self._last_line = time.monotonic()
                where = f"{progress.phase} {progress.step}/{progress.total_steps}"
                self.line(f"{progress.share:4.0%} {where} {_numbers(progress)}")
            return
        if self._bar is None:
            # The delay spares a first line without numbers.
            self._bar = tqdm(total=1.0, bar_format=_BAR, dynamic_ncols=True, delay=1e-3)
        self._bar.set_description_str(f"{progress.phase} {_numbers(progress)}", refresh=False)
        # By time and not by steps: those of one phase take much longer than another's.
        self._bar.update(progress.share - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _numbers(progress: Progress) -> str:
    numbers = progress.numbers
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
    left = tqdm.format_interval(progress.seconds_left)
    return f"{shown} {progress.rows_per_second:.0f}/s, {left} left"
