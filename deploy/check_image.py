"""Prints the size of a server image; fails if it is too large or holds training code.

Or if it cannot verify signatures, or its SBOM does not list the packages that it holds.

    python deploy/check_image.py latentserve:server

Used by `make image` and the compose test. Needs Docker and Python's standard library.
"""

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

#: Largest allowed uncompressed size on top of the base image, in MB (10^6 bytes).
MAX_MB = 300
#: Packages that the server does not need and the image must not hold.
ABSENT = ("torch", "onnx", "onnxscript", "matplotlib", "av", "training", "export")

#: The SBOM of an image: its Python packages, in the JSON format of CycloneDX.
SBOM = "/usr/share/sbom/latentserve.cdx.json"
#: Packages that every SBOM has to name, whatever is installed.
LISTED = ("grpcio", "latentserve", "onnxruntime")

# Program that runs in the image and prints which of its arguments can be imported there.
_FIND = """
import importlib.util, sys
print(*(name for name in sys.argv[1:] if importlib.util.find_spec(name)))
"""

# Program that runs in the image and prints its packages as a JSON object of versions by name.
_INSTALLED = """
import importlib.metadata, json
print(json.dumps({each.name: each.version for each in importlib.metadata.distributions()}))
"""


def main(image: str) -> int:
    """Checks an image.

    Returns:
        The exit status: 1 if a check fails.
    """
    base = _docker("build", "--quiet", "--target", "base", str(ROOT))
    megabytes = (_size(image) - _size(base)) / 1e6
    print(f"{image}: {megabytes:.0f} MB on top of its base image, at most {MAX_MB}")
    problems = []
    if megabytes > MAX_MB:
        problems.append(f"got {megabytes:.1f} MB, wanted at most {MAX_MB}")
    if found := _inside(image, "python", "-c", _FIND, *ABSENT):
        problems.append(f"got packages {found}, wanted none of {' '.join(ABSENT)}")
    # Searches the whole file system: a folder outside the import path also adds to the size.
    if found := _inside(
        image,
        "find", "/", "-xdev", "-type", "d", "(", "-name", "torch", "-o", "-name", "training", ")",
    ):  # fmt: skip
        problems.append(f"got {found}, wanted no folder torch or training")
    # Ends the check with the error if `--trust` would not work in it.
    _inside(image, "python", "-c", "import bundle.openssf")
    sbom = _inside(image, "cat", SBOM)
    problems += sbom_problems(sbom, json.loads(_inside(image, "python", "-c", _INSTALLED)))
    for problem in problems:
        print(f"{image}: {problem}", file=sys.stderr)
    return 1 if problems else 0


def sbom_problems(sbom: str, installed: Mapping[str, str]) -> list[str]:
    """Describes where an SBOM and the packages of an image differ.

    Args:
        sbom: Content of the SBOM.
        installed: Versions of the packages by their names.
    """
    try:
        content = json.loads(sbom)
        if content["bomFormat"] != "CycloneDX":
            return [f"{SBOM}: got format {content['bomFormat']}, wanted CycloneDX"]
        listed = {_normal(each["name"]): each["version"] for each in content["components"]}
    except (ValueError, KeyError, TypeError) as error:
        return [f"{SBOM}: no SBOM in the JSON format of CycloneDX: {error!r}"]
    wanted = {_normal(name): version for name, version in installed.items()}
    problems = [f"{SBOM}: {name}: wanted in every image" for name in LISTED if name not in listed]
    return problems + [
        f"{SBOM}: {name}: got {listed.get(name, 'none')}, wanted {wanted.get(name, 'none')}"
        for name in sorted(listed.keys() | wanted.keys())
        if listed.get(name) != wanted.get(name)
    ]


def _normal(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _size(image: str) -> int:
    return int(_docker("image", "inspect", "--format", "{{.Size}}", image))


def _inside(image: str, program: str, *arguments: str) -> str:
    """Output of a program run in the image, with white space collapsed."""
    options = ("--rm", "--network", "none", "--user", "0", "--entrypoint", program)
    return " ".join(_docker("run", *options, image, *arguments).split())


def _docker(*arguments: str) -> str:
    done = subprocess.run(
        ["docker", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"docker {' '.join(arguments)}: status {done.returncode}\n{done.stderr}")
    return done.stdout.strip()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} IMAGE")
    sys.exit(main(sys.argv[1]))
