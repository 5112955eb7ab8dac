"""`latentserve train`."""

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from latentserve._arguments import positive
from training.budget import parse_duration
from training.errors import ConfigError, TrainingError
from training.presets import PRESETS
from training.sources import SOURCES
from training.train import Observer, Progress, Request, train

_BAR = "{percentage:3.0f}% |{bar:20}| {n}/{total} {desc}[{elapsed}<{remaining}]"
_LINE_SECONDS = 15.0
_EXAMPLE = "latentserve train --preset dense --data mnist --budget 3m --out runs/dense"


def parser() -> argparse.ArgumentParser:
    """The arguments of `latentserve train`."""
    presets = "\n".join(f"  {name:8} {preset.summary}" for name, preset in PRESETS.items())
    result = argparse.ArgumentParser(
        prog="latentserve train",
        description="Train a variational autoencoder and leave a run folder to export.",
        epilog=f"presets:\n{presets}\n\nexample:\n  {_EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--preset", default="dense", help="what to train (default: dense)")
    result.add_argument(
        "--data",
        default="mnist",
        help=f"data set: {', '.join(sorted(SOURCES))} (default: mnist); cached in "
        "LATENTSERVE_DATA_DIR or the user's cache folder",
    )
    length = result.add_mutually_exclusive_group()
    length.add_argument(
        "--budget",
        default="3m",
        help="time to spend, such as 90s, 3m, 1.5h, in CPU time per thread; timed on a few steps "
        "first and turned into a number of steps (default: 3m)",
    )
    length.add_argument("--steps", type=positive, help="the number of steps itself")
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
    interrupts = _Interrupts()
    bar = _Bar()
    try:
        metrics = train(
            Request(
                preset=options.preset,
                data=options.data,
                out=options.out,
                steps=options.steps,
                budget=parse_duration(options.budget),
                settings=tuple(options.settings),
                resume=options.resume,
            ),
            Observer(bar.line, bar.update, interrupts.held_back),
        )
    except (TrainingError, OSError) as error:
        bar.close()
        print(f"latentserve train: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        bar.close()
        print(
            "latentserve train: stopped; the same command with --resume goes on from there",
            file=sys.stderr,
        )
        return 130
    finally:
        bar.close()
        interrupts.restore()
    print(
        f"test ELBO {metrics['elbo']:.2f} nats = reconstruction {metrics['reconstruction']:.2f} "
        f"+ KL {metrics['kl']:.2f} ({metrics['images']} binarized images, lower is better)\n"
        f"run folder: {options.out}"
    )
    return 0


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
                share = progress.step / progress.total_steps
                left = f"{progress.seconds_left:.0f} s left"
                self.line(f"{share:4.0%} step {progress.step} {_numbers(progress)}, {left}")
            return
        if self._bar is None:
            self._bar = tqdm(
                total=progress.total_steps, initial=progress.step - 1, unit="step", bar_format=_BAR
            )
        self._bar.set_description_str(_numbers(progress) + " ", refresh=False)
        self._bar.update()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _numbers(progress: Progress) -> str:
    numbers = progress.numbers
    shown = f"ELBO {numbers['elbo']:.1f} rec {numbers['reconstruction']:.1f} KL {numbers['kl']:.1f}"
    if "validation_elbo" in numbers:
        shown += f" validation {numbers['validation_elbo']:.1f}"
    if numbers["skipped"]:
        shown += f" skipped {numbers['skipped']:.0f}"
    return f"{shown} {progress.images_per_second:.0f} img/s"
