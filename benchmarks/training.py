"""Compares our trainer with pythae's: epochs per minute of CPU time.

Both train the same VAE, 784-512-256-32, on the same MNIST images, with the same batch size, number
of threads, loss and learning rate of Adam. Trainings alternate between the two, each in a separate
process; the first epoch of each is not timed. Ours also keeps a moving average of the weights and
clips the gradient's norm; pythae also keeps its best model.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks import environments
from benchmarks.machine import machine
from benchmarks.processes import CACHE, ROOT
from training.data.datasets import load_dataset

OURS, OURS_BFLOAT16, PYTHAE = "ours", "ours, bfloat16", "pythae"
Report = dict[str, float]


def table(rounds: Sequence[dict[str, Report]]) -> str:
    """Formats medians of the rounds ± half of their range, and ratios, as a Markdown table."""
    columns: list[tuple[str, int, Callable[[Report], float]]] = [
        ("epochs a CPU-minute", 1, lambda result: 60 * result["epochs"] / result["cpu_seconds"]),
        ("epochs a minute", 1, lambda result: 60 * result["epochs"] / result["wall_seconds"]),
        ("held-out ELBO, nats", 1, lambda result: -result["held_out_nats"]),
    ]
    lines = [
        "| trainer | " + " | ".join(title for title, _, _ in columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for name in (OURS, OURS_BFLOAT16, PYTHAE):
        cells = []
        for _, digits, of in columns:
            got = [of(result[name]) for result in rounds]
            half = (max(got) - min(got)) / 2
            cells.append(f"{statistics.median(got):.{digits}f} ± {half:.{digits}f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for name in (OURS, OURS_BFLOAT16):
        ratios = [
            statistics.median(of(result[name]) / of(result[PYTHAE]) for result in rounds)
            for _, _, of in columns[:2]
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
    trainers: dict[str, tuple[Path, str, list[str]]] = {
        OURS: (Path(sys.executable), "ours", arguments),
        OURS_BFLOAT16: (Path(sys.executable), "ours", [*arguments, "--bfloat16"]),
        PYTHAE: (environments.python(PYTHAE), "pythae", arguments),
    }
    rounds: list[dict[str, Report]] = []
    for number in range(wanted.rounds):
        # Alternates the order of the trainers.
        names = sorted(trainers, reverse=bool(number % 2))
        rounds.append({name: train(*trainers[name]) for name in names})
        for name, report in sorted(rounds[-1].items()):
            figures = ", ".join(f"{key} {value:.2f}" for key, value in report.items())
            print(f"round {number + 1}/{wanted.rounds} {name:14} {figures}", file=sys.stderr)
    command = " ".join(["python", "-m", "benchmarks.training", *sys.argv[1:]])
    print(f"{machine()}\n`{command}`\n\n{table(rounds)}")
    if wanted.out is not None:
        whole = {"machine": machine(), "command": command, "rounds": rounds}
        fresh = wanted.out.with_name(wanted.out.name + ".part")
        fresh.write_text(json.dumps(whole, indent=1))
        fresh.replace(wanted.out)
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


def train(interpreter: Path, name: str, arguments: Sequence[str]) -> Report:
    """Runs one training in a process of its own.

    Args:
        interpreter: Path of its Python.
        name: Its program in `benchmarks.trainers` is NAME_program.
        arguments: Arguments of the program.
    """
    command = [str(interpreter), "-m", f"benchmarks.trainers.{name}_program", *arguments]
    # Output is captured because pythae updates a progress bar on stderr for every batch.
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name}: status {done.returncode}\n{done.stderr}")
    report: Report = json.loads(done.stdout.splitlines()[-1])
    return report


if __name__ == "__main__":
    sys.exit(main())
