"""Counts what the handling of a call costs, on a machine that does other work too.

    python -m benchmarks.instructions ../before

For this checkout, and another one if given: the instructions and the Python calls that an Encode
or Decode call of one image takes, 32 in flight, without its graph and the kernel. They are counted
by valgrind's callgrind, so the load of the machine does not matter.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.graphs import models
from benchmarks.instructions_program import CALLS, CONNECTIONS
from benchmarks.processes import ROOT

# The difference of two runs leaves out what a run costs once.
_TURNS = (30, 130)


def main(arguments: list[str] | None = None) -> int:
    """Entry point; see the module docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.instructions", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "checkout", nargs="?", type=Path, help="another checkout, such as a git worktree"
    )
    options = parser.parse_args(arguments)
    if shutil.which("valgrind") is None:
        print("valgrind: not found, wanted Debian's package valgrind", file=sys.stderr)
        return 2
    checkouts = {"this": ROOT}
    if options.checkout is not None:
        checkouts = {str(options.checkout): options.checkout.resolve(), **checkouts}
    print("| checkout | RPC | instructions a call | Python calls a call |\n|---|---|---:|---:|")
    for rpc in ("encode", "decode"):
        for name, root in checkouts.items():
            few, many = (_instructions(root, rpc, turns) for turns in _TURNS)
            each = (many - few) / ((_TURNS[1] - _TURNS[0]) * CONNECTIONS * CALLS)
            calls = float(_run(root, rpc, 10, "--profile"))
            print(f"| {name} | {rpc} | {each:,.0f} | {calls:.0f} |", flush=True)
    return 0


def _instructions(root: Path, rpc: str, turns: int) -> int:
    said = _run(
        root, rpc, turns,
        valgrind=["valgrind", "--tool=callgrind", "--instr-atstart=no",
                  "--callgrind-out-file=/dev/null"],
    )  # fmt: skip
    counted = re.search(r"Collected : (\d+)", said)
    if counted is None:
        raise RuntimeError(f"callgrind: got no count: {said[-1000:]}")
    return int(counted[1])


def _run(root: Path, rpc: str, turns: int, *more: str, valgrind: list[str] | None = None) -> str:
    """Runs the program with a checkout's packages; returns its output, or valgrind's."""
    program = ROOT / "benchmarks" / "instructions_program.py"
    done = subprocess.run(
        [*(valgrind or []), sys.executable, program, models(), rpc, str(turns), *more],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stderr if valgrind else done.stdout


if __name__ == "__main__":
    sys.exit(main())
