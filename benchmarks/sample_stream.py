"""Images per second of SampleStream, compared with those of the decoder without a server.

    python -m benchmarks.sample_stream --rounds 5

measures in turn: a stream of uint8 samples from the server to the Python client, which share all
CPUs; the decoder alone in a separate process, on one thread; and the same on all CPUs. A batch of
the decoder has as many rows as a message of the stream.
"""

import argparse
import statistics
import sys
import time

from benchmarks.machine import machine
from benchmarks.servers.bare import Bare
from benchmarks.servers.ours import Ours
from benchmarks.shapes import Shape
from common.cpus import usable_cpus
from latentserve.client import Client


def main() -> int:
    """Entry point; see the module docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sample_stream", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--rows", type=int, default=100_000, help="default: %(default)s")
    parser.add_argument(
        "--chunk-rows", type=int, default=256, help="rows per message (default: %(default)s)"
    )
    parser.add_argument("--serve", default="", help="more arguments of `latentserve serve`")
    options = parser.parse_args()
    ours = Ours("ours", options.serve.split())
    decoders = {1: Bare("bare"), usable_cpus(): Bare("bare-all", usable_cpus())}
    shape = Shape("decode", options.chunk_rows, "uint8", 1, 1)
    rates: dict[str, list[float]] = {"SampleStream": []}
    try:
        ours.start()
        for decoder in decoders.values():
            decoder.start()
        with Client(f"127.0.0.1:{ours.port}", timeout=300) as client:
            for _ in range(options.rounds):
                rates["SampleStream"].append(_stream(client, options.rows, options.chunk_rows))
                for threads, decoder in decoders.items():
                    measured = decoder.measure(shape, 2.0)
                    rates.setdefault(f"decoder, {threads} thread(s)", []).append(
                        measured.calls * shape.rows / measured.seconds
                    )
                print({name: round(values[-1]) for name, values in rates.items()}, file=sys.stderr)
    finally:
        ours.stop()
        for decoder in decoders.values():
            decoder.stop()
    print(
        f"{machine()}\n\n| {options.chunk_rows} rows a message | images/s | SampleStream's share |"
    )
    print("| --- | ---: | ---: |")
    for name, values in rates.items():
        share = statistics.median(
            one / two for one, two in zip(rates["SampleStream"], values, strict=True)
        )
        print(f"| {name} | {statistics.median(values):,.0f} | {share:.2f} |")
    return 0


def _stream(client: Client, rows: int, chunk_rows: int) -> float:
    """Reads one stream to its end and returns its images per second."""
    began = time.perf_counter()
    stream = client.sample_stream(rows, seed=1, dtype="uint8", chunk_rows=chunk_rows)
    got = sum(len(chunk.images) for chunk in stream)
    assert got == rows, f"got {got} images, wanted {rows}"
    return rows / (time.perf_counter() - began)


if __name__ == "__main__":
    sys.exit(main())
