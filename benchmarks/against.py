"""Compares this checkout's server with another checkout's: the cost of a change.

    python -m benchmarks.against ../before --pairs 9 --shapes encode-1

Both servers serve the same bundle. Each pair measures one after the other, in alternating order, so
that other work on the machine affects both alike. Compares server CPU time per call: reports the
median ratio and the median difference over the pairs, each with a distribution-free confidence
interval of at least 95 % (order statistics; 96 % with 9 pairs).
"""

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import h2load
from benchmarks.graphs import models
from benchmarks.machine import machine
from benchmarks.servers.ours import Ours
from benchmarks.shapes import Shape, named

_CONFIDENCE = 0.95
_MIN_PAIRS = 6  # with fewer, no interval reaches that confidence


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Confidence interval of the median by order statistics (David and Nagaraja, 7.1).

    Args:
        values: At least six independent measurements.
    """
    ordered, count = sorted(values), len(values)
    inside, rank = 1.0, 0
    while True:
        # Probability that the median lies outside the ordered values rank to count - 1 - rank.
        narrower = inside - 2.0 * math.comb(count, rank) / 2.0**count
        if narrower < _CONFIDENCE:
            break
        inside, rank = narrower, rank + 1
    rank = max(rank - 1, 0)
    return ordered[rank], ordered[-1 - rank]


def main(arguments: list[str] | None = None) -> int:
    """Entry point; see the module docstring."""
    options = _parser().parse_args(arguments)
    if not (options.checkout / "latentserve").is_dir():
        print(f"{options.checkout}: no checkout of latentserve", file=sys.stderr)
        return 2
    if not h2load.available():
        print("h2load: not found, wanted Debian's package nghttp2-client", file=sys.stderr)
        return 2
    models()
    before = Ours("before", checkout=options.checkout)
    after = Ours("after", options.serve.split())
    print(machine(), flush=True)
    try:
        before.start()
        after.start()
        for shape in named(options.shapes):
            print(compare(before, after, shape, options.pairs, options.seconds), flush=True)
    finally:
        before.stop()
        after.stop()
    return 0


def compare(before: Ours, after: Ours, shape: Shape, pairs: int, seconds: float) -> str:
    """Measures one shape on both servers and returns the result as one line."""
    took: dict[str, list[float]] = {before.name: [], after.name: []}
    for number in range(pairs):
        for server in (before, after) if number % 2 else (after, before):
            measured = server.measure(shape, seconds)
            took[server.name].append(1e6 * measured.cpu_seconds / measured.calls)
    old, new = took[before.name], took[after.name]
    ratios = [mine / theirs for theirs, mine in zip(old, new, strict=True)]
    differences = [mine - theirs for theirs, mine in zip(old, new, strict=True)]
    return (
        f"{shape.name:<22} CPU a call {statistics.median(old):7.1f} -> "
        f"{statistics.median(new):7.1f} us, ratio {statistics.median(ratios):.3f} "
        "[{:.3f}, {:.3f}]".format(*interval(ratios))
        + f", difference {statistics.median(differences):+.1f} us "
        + "[{:+.1f}, {:+.1f}]".format(*interval(differences))
        + f" ({pairs} pairs)"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.against", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("checkout", type=Path, help="the other checkout, such as a git worktree")
    parser.add_argument(
        "--serve",
        default="",
        metavar="OPTIONS",
        help="options of this checkout's server, as in --serve='--gateway-port 0'",
    )
    add_options(parser, [], "all")
    return parser


def add_options(parser: argparse.ArgumentParser, shapes: Sequence[str], which: str) -> None:
    """Adds the options of what `compare` is called with.

    Args:
        parser: The parser of a program that measures pairs.
        shapes: Default of `--shapes`.
        which: What that is, for the help.
    """
    parser.add_argument(
        "--shapes",
        type=lambda text: text.split(","),
        default=shapes,
        metavar="NAME,...",
        help=f"prefixes of names, such as encode-1,decode-1024-uint8 (default: {which})",
    )
    parser.add_argument("--pairs", type=_pairs, default=9, help="default: %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="duration of each load (default: %(default)g)"
    )


def _pairs(text: str) -> int:
    if not text.isdecimal() or int(text) < _MIN_PAIRS:
        raise argparse.ArgumentTypeError(f"got {text}, wanted an integer, at least {_MIN_PAIRS}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
