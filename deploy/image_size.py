"""Prints how large an image is; fails where it is too large or holds what it should not.

    python deploy/image_size.py IMAGE [--most-mb 250] [--without torch,onnx]
"""

import argparse
import subprocess
import sys

# Runs in the image.
_FIND = """
import importlib.util, sys
print(*(name for name in sys.argv[1:] if importlib.util.find_spec(name)))
"""


def main() -> int:
    """Returns 0 where all is as it should be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image")
    parser.add_argument("--most-mb", type=float, default=250.0, help="10^6 bytes, unpacked")
    parser.add_argument("--without", default="torch,onnx", help="packages; comma between them")
    wanted = parser.parse_args()
    size = int(_docker("image", "inspect", "--format", "{{.Size}}", wanted.image)) / 1e6
    packages = wanted.without.split(",")
    run = ("run", "--rm", "--network", "none", "--entrypoint", "python", wanted.image)
    found = _docker(*run, "-c", _FIND, *packages).split()
    print(f"{wanted.image}: {size:.0f} MB, without {', '.join(packages)}")
    if found:
        print(f"packages: got {', '.join(found)}, wanted none of them", file=sys.stderr)
    if size > wanted.most_mb:
        print(f"size: got {size:.0f} MB, wanted at most {wanted.most_mb:g}", file=sys.stderr)
    return int(bool(found) or size > wanted.most_mb)


def _docker(*arguments: str) -> str:
    return subprocess.run(
        ["docker", *arguments], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
