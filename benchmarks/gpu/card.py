"""The card that figures were measured on, its driver, and the versions of the libraries."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, distributions, version

from service.models.onnx import Device

_PACKAGES = ("onnxruntime-gpu", "onnxruntime", "torch", "numpy")
# What the names of the packages begin with; they end with CUDA's version.
_CUDA = ("nvidia-cuda-runtime", "nvidia-cudnn")


def card(device: Device) -> dict[str, str]:
    """Name, driver and memory of a GPU, by nvidia-smi; empty values where it cannot say.

    Of a GPU that CUDA_VISIBLE_DEVICES numbers otherwise, nvidia-smi's own number counts.
    """
    fields = ("name", "driver_version", "memory.total")
    if device.kind == "cpu":
        return {"name": "none: run on the CPU", "driver": "", "memory": ""}
    command = [
        "nvidia-smi", f"--id={device.index}", f"--query-gpu={','.join(fields)}",
        "--format=csv,noheader",
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        values = [value.strip() for value in done.stdout.splitlines()[0].split(",")]
    except (OSError, subprocess.SubprocessError, IndexError):
        values = ["unknown: nvidia-smi does not answer", "", ""]
    return dict(zip(("name", "driver", "memory"), values, strict=True))


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that compute; those that are not there are left out.

    CUDA and cuDNN are among them if pip has installed them, and not if the system has.
    """
    found = {"python": platform.python_version()}
    names = sorted({distribution.name for distribution in distributions()})
    for package in (*_PACKAGES, *(name for name in names if name.startswith(_CUDA))):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
