"""Two ways to use the cores for batches: all cores on one batch, or one core per batch.

    python -m benchmarks.threads --rounds 5

Compares a session with one thread per CPU, which computes one batch after another, with a
single-threaded session that computes one batch per CPU concurrently. The graphs are the encoder and
the decoder of the dense benchmark model and of the flagship. The rounds of both sessions are
interleaved; medians are reported.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks.graphs import graph
from benchmarks.machine import machine
from benchmarks.processes import ROOT
from common.cpus import usable_cpus

ROWS = (1, 16, 64, 256)
_SECONDS = 0.3


def main() -> int:
    """Entry point; see the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    rounds = parser.parse_args().rounds
    cpus = usable_cpus()
    print(f"{machine()}\n")
    print(f"| graph | rows in a batch | CPU µs a row: {cpus} threads on a batch | 1 on each | "
          "rows/s | rows/s |")  # fmt: skip
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    with ThreadPoolExecutor(cpus) as pool:
        for name, path in graphs().items():
            for rows in ROWS:
                ways = {
                    "all": batches(path, rows, cpus, 1, pool),
                    "each": batches(path, rows, 1, cpus, pool),
                }
                timings: dict[str, list[tuple[float, float]]] = {"all": [], "each": []}
                for _ in range(rounds):
                    for way, run in ways.items():
                        timings[way].append(timed(run, rows))
                cpu = {
                    way: statistics.median(timing[0] for timing in timings[way]) for way in timings
                }
                speed = {
                    way: statistics.median(timing[1] for timing in timings[way]) for way in timings
                }
                print(f"| {name} | {rows} | {cpu['all']:.1f} | {cpu['each']:.1f} | "
                      f"{speed['all']:,.0f} | {speed['each']:,.0f} |", flush=True)  # fmt: skip
    return 0


def graphs() -> dict[str, Path]:
    """Paths of the ONNX files to measure, by title in the table."""
    flagship = ROOT / "models" / "mnist" / "2"
    return {
        "dense encoder": graph("encode"),
        "dense decoder": graph("decode"),
        "flagship encoder": flagship / "encoder.onnx",
        "flagship decoder": flagship / "decoder.onnx",
    }


def batches(
    path: Path, rows: int, threads: int, at_once: int, pool: ThreadPoolExecutor
) -> Callable[[int], int]:
    """Makes a function that runs `count` batches in each of `at_once` parallel workers.

    Args:
        path: The ONNX file.
        rows: Rows per batch.
        threads: Threads of the session.
        at_once: Number of batches that run concurrently.
        pool: Pool of at least `at_once` threads.

    Returns:
        A function of `count` that returns the total number of batches.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    array = np.random.default_rng(0).random((rows, *given.shape[1:]), np.float32)
    outputs = [output.name for output in session.get_outputs() if output.name != "logits"]

    def some(count: int) -> None:
        for _ in range(count):
            session.run(outputs, {given.name: array})

    def run(count: int) -> int:
        list(pool.map(some, [count] * at_once))
        return count * at_once

    return run


def timed(run: Callable[[int], int], rows: int) -> tuple[float, float]:
    """Times a function made by `batches`; returns CPU microseconds per row, and rows per second."""
    began = time.perf_counter()
    run(1)
    count = max(1, int(_SECONDS / (time.perf_counter() - began) / 2))
    cpu, began = time.process_time(), time.perf_counter()
    done = rows * run(count)
    return (time.process_time() - cpu) / done * 1e6, done / (time.perf_counter() - began)


if __name__ == "__main__":
    sys.exit(main())
