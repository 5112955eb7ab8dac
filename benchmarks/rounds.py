"""Rounds of trainings, each in a process of its own, and the table and file of their results."""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.machine import machine
from benchmarks.processes import ROOT

Report = dict[str, float]


class Trainer(NamedTuple):
    """A program that trains once and prints a report.

    Attributes:
        interpreter: Path of its Python.
        program: Its module in `benchmarks.trainers` is PROGRAM_program.
        arguments: Its arguments.
    """

    interpreter: Path
    program: str
    arguments: Sequence[str]


class Column(NamedTuple):
    """A figure of each training.

    Attributes:
        title: Its name and unit.
        digits: Number of decimals.
        of: Computes it from a report.
    """

    title: str
    digits: int
    of: Callable[[Report], float]


def run_rounds(trainers: Mapping[str, Trainer], rounds: int) -> list[dict[str, Report]]:
    """Runs all trainers in each round, in alternating order; prints a line for each training.

    Returns:
        For each round, the reports by name of the trainer.
    """
    results: list[dict[str, Report]] = []
    for number in range(rounds):
        order = list(trainers)[:: -1 if number % 2 else 1]
        reports = {name: _train(trainers[name]) for name in order}
        results.append({name: reports[name] for name in trainers})
        for name, figures_of in results[-1].items():
            figures = ", ".join(f"{key} {value:.2f}" for key, value in figures_of.items())
            print(f"round {number + 1}/{rounds} {name:24} {figures}", file=sys.stderr)
    return results


def rows(results: Sequence[dict[str, Report]], columns: Sequence[Column]) -> list[str]:
    """Formats medians of the rounds ± half of their range, as lines of a Markdown table."""
    lines = [
        "| trainer | " + " | ".join(column.title for column in columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for name in results[0]:
        cells = []
        for _, digits, of in columns:
            got = [of(result[name]) for result in results]
            half = (max(got) - min(got)) / 2
            cells.append(f"{statistics.median(got):.{digits}f} ± {half:.{digits}f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def report(module: str, results: Sequence[dict[str, Report]], table: str, out: Path | None) -> None:
    """Prints the table with the machine and the command, and writes all results to a file."""
    command = " ".join(["python", "-m", module, *sys.argv[1:]])
    print(f"{machine()}\n`{command}`\n\n{table}")
    if out is not None:
        whole = {"machine": machine(), "command": command, "rounds": results}
        fresh = out.with_name(out.name + ".part")
        fresh.write_text(json.dumps(whole, indent=1))
        fresh.replace(out)


def _train(trainer: Trainer) -> Report:
    """Runs one training in a process of its own."""
    command = [
        str(trainer.interpreter), "-m", f"benchmarks.trainers.{trainer.program}_program",
        *trainer.arguments,
    ]  # fmt: skip
    # Output is captured because pythae updates a progress bar on stderr for every batch.
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{trainer.program}: status {done.returncode}\n{done.stderr}")
    found: Report = json.loads(done.stdout.splitlines()[-1])
    return found
