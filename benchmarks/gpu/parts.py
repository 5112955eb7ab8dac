"""Runs each part in a process of its own, for a limited time.

A CUDA error ends the process that it hits, and what one part leaves in a GPU's memory would be
counted in the next, so parts share no process.
"""

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from benchmarks.gpu.record import Outcome, Record, Setting, read
from benchmarks.processes import ROOT, tree

# How long a part may take to stop its servers.
_STOP_SECONDS = 15.0


class Part(NamedTuple):
    """A part of the measurement.

    Attributes:
        module: Name of the module in `benchmarks.gpu` that has it.
        function: Name of the function there, which takes the setting and yields records.
        seconds: Limit of its time.
    """

    module: str
    function: str
    seconds: float


#: The parts by name, in the order in which they run. Their limits add up to less than 8 minutes.
PARTS = {
    "parity": Part("parity", "bundles", 45),
    "sampling": Part("serving", "sampling", 35),
    "speed": Part("speed", "networks", 75),
    "picture": Part("picture", "imported", 75),
    "training-conv": Part("training", "conv", 70),
    "training-photo": Part("training", "photo", 70),
    "memory": Part("memory", "batches", 40),
    "serving": Part("serving", "server", 60),
}


def measure(name: str, setting: Setting) -> Iterable[Record]:
    """Runs a part in this process; yields its records as they are measured."""
    part = PARTS[name]
    module = importlib.import_module(f"benchmarks.gpu.{part.module}")
    function: Callable[[Setting], Iterable[Record]] = getattr(module, part.function)
    return function(setting)


def run(name: str, setting: Setting, seconds: float) -> Outcome:
    """Runs a part in a process of its own, and stops it when its time is over.

    Args:
        name: Name of the part.
        setting: What it is run with.
        seconds: Limit of its time, beside its own.

    Returns:
        What it has measured, and how it ended.
    """
    limit = min(seconds, PARTS[name].seconds)
    if limit <= 0:
        return Outcome(0.0, "not run: no time is left", [])
    command = [
        sys.executable, "-m", "benchmarks.gpu", "--part", name, "--device", str(setting.device),
        "--work", str(setting.work), *(["--quick"] if setting.quick else []),
    ]  # fmt: skip
    out, log = setting.work / f"{name}.jsonl", setting.work / f"{name}.log"
    began = time.monotonic()
    with out.open("w") as records, log.open("w") as said:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=records,
            stderr=said,
            # So that `_stop` can tell its children by their session.
            start_new_session=True,
        )
        try:
            status = process.wait(limit)
            error = f"status {status}: {_last_line(log)}" if status else ""
        except subprocess.TimeoutExpired:
            error = f"stopped after {limit:.0f} s"
        finally:
            _stop(process)
    return Outcome(time.monotonic() - began, error, list(read(out)))


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a part that still runs, and whatever it has started."""
    if process.poll() is not None:
        return
    pids = tree(process.pid)
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pid in pids[1:]:
        # Children that outlived it; servers are in sessions of their own.
        with suppress(ProcessLookupError):
            if os.getsid(pid) in pids:
                os.kill(pid, signal.SIGKILL)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "it said nothing")
