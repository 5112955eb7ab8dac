"""Compares our training on colour images with pythae's at equal CPU time.

Three trainings on the training split of 64 x 64 pictures, measured on the test split: the preset
`photo`; pythae's VAE with its own networks for that size (CELEBA); and pythae's VAE with the
networks of `photo`, in pythae's trainer. Trainings alternate, each in a process of its own. The
CPU time is that of the training loop: reading the pictures and measuring come on top.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from benchmarks import environments
from benchmarks.processes import CACHE
from benchmarks.rounds import Column, Trainer, report, rows, run_rounds
from training.budget import parse_duration
from training.data.datasets import load_dataset
from training.data.spec import DataSpec

OURS, PYTHAE, PYTHAE_OURS = "photo", "pythae, its networks", "pythae, photo's networks"
COLUMNS = (
    Column("PSNR, dB", 2, lambda result: result["psnr"]),
    Column("bits per dimension", 3, lambda result: result["bits_per_dimension"]),
    Column("images a CPU-second", 0, lambda result: result["images"] / result["cpu_seconds"]),
    Column("parameters, millions", 2, lambda result: result["parameters"] / 1e6),
)


def main() -> int:
    """Runs all rounds; prints a line for each training, and the table."""
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training_colour", description=summary
    )
    parser.add_argument("--data", required=True, metavar="SOURCE", help="such as folder:icons")
    parser.add_argument("--budget", default="3m", help="CPU time per thread (default: 3m)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default: 2)")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    names = (OURS, PYTHAE, PYTHAE_OURS)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="TRAINER")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="where to write all results")
    wanted = parser.parse_args()
    arguments = [
        f"--images={_images(wanted.data)}", f"--seconds={parse_duration(wanted.budget)}",
        f"--threads={wanted.threads}",
    ]  # fmt: skip
    trainers = {}
    for name, program, network in (
        (OURS, "ours_colour", "photo"),
        (PYTHAE, "pythae_colour", "celeba"),
        (PYTHAE_OURS, "pythae_colour", "photo"),
    ):
        if name in wanted.only:
            python = Path(sys.executable) if name == OURS else environments.python("pythae")
            trainers[name] = Trainer(python, program, [*arguments, f"--network={network}"])
    results = run_rounds(trainers, wanted.rounds)
    table = "\n".join(rows(results, COLUMNS))
    report("benchmarks.training_colour", results, table, wanted.out)
    return 0


def _images(source: str) -> Path:
    """Writes the images to a file for programs that do not read folders."""
    dataset = load_dataset(DataSpec.parse(source))
    path = CACHE / "colour.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name("colour.part.npz")
    train, test = dataset.train, dataset.test
    np.savez(fresh, train=train.images[:], labels=train.labels, test=test.images[:])
    fresh.replace(path)
    return path


if __name__ == "__main__":
    sys.exit(main())
