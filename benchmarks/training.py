"""Compares our trainer with pythae's: epochs per minute of CPU time.

Both train the same VAE, 784-512-256-32, on the same MNIST images, with the same batch size, number
of threads, loss and learning rate of Adam. Trainings alternate between the two, each in a separate
process; the first epoch of each is not timed. Ours also keeps a moving average of the weights and
clips the gradient's norm; pythae also keeps its best model.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import environments
from benchmarks.processes import CACHE
from benchmarks.rounds import Column, Report, Trainer, report, rows, run_rounds
from training.data.datasets import load_dataset

OURS, OURS_BFLOAT16, PYTHAE = "ours", "ours, bfloat16", "pythae"
COLUMNS = (
    Column("epochs a CPU-minute", 1, lambda result: 60 * result["epochs"] / result["cpu_seconds"]),
    Column("epochs a minute", 1, lambda result: 60 * result["epochs"] / result["wall_seconds"]),
    Column("held-out ELBO, nats", 1, lambda result: -result["held_out_nats"]),
)


def table(results: Sequence[dict[str, Report]]) -> str:
    """Formats the results and the ratios of speeds as a Markdown table."""
    lines = rows(results, COLUMNS)
    for name in (OURS, OURS_BFLOAT16):
        ratios = [
            statistics.median(of(result[name]) / of(result[PYTHAE]) for result in results)
            for _, _, of in COLUMNS[:2]
        ]
        cells = [f"{ratio:.2f}" for ratio in ratios]
        lines.append(f"| {name}: multiple of {PYTHAE} | " + " | ".join(cells) + " | |")
    return "\n".join(lines)


def main() -> int:
    """Runs all rounds; prints a line for each training, and the table."""
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=summary)
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--epochs", type=int, default=3, help="counted epochs (default: 3)")
    parser.add_argument("--batch-size", type=int, default=256, help="default: 256")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="where to write all results")
    wanted = parser.parse_args()
    images = _images()
    arguments = [
        f"--images={images}", f"--epochs={wanted.epochs}", f"--batch-size={wanted.batch_size}",
        f"--threads={wanted.threads}",
    ]  # fmt: skip
    trainers = {
        OURS: Trainer(Path(sys.executable), "ours", arguments),
        OURS_BFLOAT16: Trainer(Path(sys.executable), "ours", [*arguments, "--bfloat16"]),
        PYTHAE: Trainer(environments.python(PYTHAE), "pythae", arguments),
    }
    results = run_rounds(trainers, wanted.rounds)
    report("benchmarks.training", results, table(results), wanted.out)
    return 0


def _images() -> Path:
    """Writes the images to a file for programs that do not import this project."""
    mnist = load_dataset("mnist")
    path = CACHE / "mnist.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name("mnist.part.npz")
    train, test = (
        split.images[:].reshape(len(split.images), -1) for split in (mnist.train, mnist.test)
    )
    np.savez(fresh, train=train, test=test)
    fresh.replace(path)
    return path


if __name__ == "__main__":
    sys.exit(main())
