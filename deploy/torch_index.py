"""Prints the package index that `make` installs torch from, or nothing for pip's default.

    python deploy/torch_index.py

On Linux, pip's default index has a torch that depends on several GB of CUDA packages. A machine
without an NVIDIA GPU gets the index of CPU builds, provided that it answers within a few seconds.
The choice and its reason go to stderr. Runs before anything is installed: standard library only.
"""

import argparse
import shutil
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
DEVICE = Path("/dev/nvidia0")


def has_gpu() -> bool:
    """Whether this machine has a usable NVIDIA GPU."""
    if DEVICE.exists():
        return True
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    try:
        # One line per GPU; without a GPU it fails or prints none.
        done = subprocess.run(
            [program, "--list-gpus"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and "GPU" in done.stdout


def answers(index: str, seconds: float) -> bool:
    """Whether an index serves torch and responds within `seconds`."""
    found = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(f"{index}/torch/", timeout=seconds) as reply:
                found.append(reply.status == 200)
        except (OSError, ValueError):
            pass

    # In a thread, because a DNS lookup has no timeout of its own.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds)
    return found == [True]


def main() -> int:
    """Prints the index to stdout and the reason to stderr."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--index", default=CPU_INDEX, help="index of CPU builds (%(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="timeout of that index (%(default)s)"
    )
    options = parser.parse_args()
    index = ""
    if not sys.platform.startswith("linux"):
        why = "from pip's default index, which has no CUDA builds for this system"
    elif has_gpu():
        why = "from pip's default index, since there is an NVIDIA GPU"
    elif answers(options.index, options.seconds):
        index = options.index
        why = f"the CPU build from {index}, since there is no NVIDIA GPU"
    else:
        why = (
            f"from pip's default index; there is no NVIDIA GPU, but {options.index} did not "
            f"respond within {options.seconds:g} s"
        )
    print(f"torch: {why} (TORCH_INDEX=... overrides)", file=sys.stderr)
    print(index)
    return 0


if __name__ == "__main__":
    sys.exit(main())
