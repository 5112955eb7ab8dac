"""Memory of server and client during a long stream.

Serves a model on a free port, runs SampleStream and then DecodeStream with the same number of rows,
and reports the resident memory of both processes at each tenth of a stream:

    .venv/bin/python benchmarks/stream_memory.py --model mnist2d --rows 1000000

Exits with 1 if either process grew by more than `--allowed` MiB between the first
tenth of a stream and its end.
"""

import argparse
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from latentserve.client import Client, Unavailable

CHUNK = 1000
_PAGE = os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    """Entry point; see the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", default="models", help="models folder (default: %(default)s)")
    parser.add_argument("--model", default="", help="model name (default: the server's default)")
    parser.add_argument("--rows", type=int, default=1_000_000, help="default: %(default)s")
    parser.add_argument(
        "--allowed", type=float, default=32.0, help="growth allowed in MiB (default: %(default)g)"
    )
    options = parser.parse_args()
    with server(options.models) as (target, pid), Client(target, timeout=300) as client:
        dim = client.model(options.model).latent_dim
        drawn = client.sample_stream(
            options.rows, seed=1, dtype="uint8", chunk_rows=CHUNK, model=options.model
        )
        grown = [watch("SampleStream", options.rows, (len(chunk.images) for chunk in drawn), pid)]
        latents = batches(options.rows, dim)
        decoded = client.decode_stream(latents, dtype="uint8", model=options.model)
        grown.append(watch("DecodeStream", options.rows, (len(images) for images in decoded), pid))
    return int(max(grown) > options.allowed)


def watch(name: str, rows: int, sizes: Iterable[int], pid: int) -> float:
    """Reads a stream to its end; returns by how many MiB client or server grew, at most."""
    done, reported, began = 0, 0, time.monotonic()
    first: tuple[float, float] | None = None
    print(
        f"{name}\n{'rows':>10}  {'server MiB':>10}  {'client MiB':>10}  {'rows/s':>8}", flush=True
    )
    for size in sizes:
        done += size
        if done * 10 // rows > reported:
            reported = done * 10 // rows
            now = resident(pid), resident(os.getpid())
            first = first or now
            speed = done / (time.monotonic() - began)
            print(f"{done:>10}  {now[0]:>10.0f}  {now[1]:>10.0f}  {speed:>8.0f}", flush=True)
    assert done == rows, f"got {done} rows, wanted {rows}"
    assert first is not None
    grown = max(resident(pid) - first[0], resident(os.getpid()) - first[1])
    print(f"grown since the first tenth: {grown:.1f} MiB", flush=True)
    return grown


def batches(rows: int, dim: int) -> Iterator[np.ndarray]:
    """Generates `rows` random latents in batches, float32 [at most CHUNK, dim], on demand."""
    rng = np.random.default_rng(0)
    for start in range(0, rows, CHUNK):
        yield rng.standard_normal((min(CHUNK, rows - start), dim), np.float32)


def resident(pid: int) -> float:
    """Resident memory of a process in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * _PAGE / 2**20


@contextmanager
def server(models: str) -> Iterator[tuple[str, int]]:
    """Runs a server on a free port for the context; yields its address and process id."""
    process = subprocess.Popen(
        [sys.executable, "-m", "latentserve", "serve", "--models", models, "--port", "0",
         "--http-port", "off", "--log-level", "warning"],
        stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdout is not None
    # Reads the address, then keeps reading in a thread, so that the pipe does not fill.
    line = process.stdout.readline()
    threading.Thread(target=process.stdout.read, daemon=True).start()
    try:
        target = line.split()[-1]
        with Client(target) as client:
            for _ in range(600):
                try:
                    if client.is_serving():
                        break
                except Unavailable:
                    pass
                time.sleep(0.1)
        yield target, process.pid
    finally:
        process.terminate()
        process.wait(60)


if __name__ == "__main__":
    sys.exit(main())
