"""Decoding the pictures of a source, into a file or into memory."""

import hashlib
import io
import os
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from latentserve._walk import Problem
from training.data.checks import Progress, silent
from training.data.download import Report
from training.data.pictures import Contents, PictureSource, decoded
from training.data.pixel_file import PixelFile
from training.data.spec import DataSpec
from training.errors import DataError

#: Most bytes of images that are held in memory.
IN_MEMORY = 1 << 30

# Most skipped files that are named.
_NAMED = 10


@dataclass(frozen=True)
class Pictures:
    """The decoded images of a source.

    Attributes:
        spec: The specification that they were found by.
        images: uint8 [N, C, H, W], a memory map unless the cache could not be used.
        contents: Their labels, splits and classes.
        skipped: Names of the files that could not be used.
    """

    spec: DataSpec
    images: NDArray[np.uint8]
    contents: Contents
    skipped: tuple[str, ...]


def pictures_in_memory(
    source: PictureSource, report: Report, progress: Progress = silent, why: str = ""
) -> Pictures:
    """Decodes the images of a source into memory, at most `IN_MEMORY` bytes of them.

    Args:
        source: The pictures.
        report: As for `decode_into`.
        progress: As for `decode_into`.
        why: Why they are not in the cache, for the message about images that do not fit.

    Raises:
        DataError: As for `decode_into`.
        ConfigError: As for `decode_into`.
    """
    buffer = io.BytesIO()
    pixels, contents, skipped = decode_into(source, buffer, report, progress, memory_only=why)
    images = np.frombuffer(buffer.getbuffer(), np.uint8).reshape(pixels.shape)
    return Pictures(source.spec, images, contents, skipped)


def decode_into(
    source: PictureSource,
    file: BinaryIO,
    report: Report,
    progress: Progress,
    *,
    memory_only: str = "",
) -> tuple[PixelFile, Contents, tuple[str, ...]]:
    """Decodes the pictures of a source into a file.

    Args:
        source: The pictures.
        file: Where the pixels are written.
        report: Called with a line before decoding, and one for each of the first files skipped.
        progress: Called after each picture.
        memory_only: Why the file is in memory; then pictures that do not fit are refused.

    Returns:
        The written file, what the source says about its pictures, and names of those skipped.

    Raises:
        DataError: Pictures cannot be used, are too few, or do not fit in memory.
        ConfigError: They differ in size and the specification gives no size.
        OSError: The file cannot be written.
    """
    spec, total = source.spec, len(source)
    report(f"reading {total} images from {spec.origin}")
    pixels = PixelFile(file, total, spec.origin)
    digest, usable, problems = hashlib.sha256(), [], list(source.problems)
    for place, (item, result) in enumerate(decoded(source.items(), source.at_a_time)):
        if isinstance(result, Problem):
            problems.append(result)
        else:
            image, sha256 = result
            if memory_only and total * image.nbytes > IN_MEMORY:
                raise DataError(
                    f"{memory_only}; they take {total * image.nbytes / 2**30:.1f} GiB. Remedy: set "
                    "LATENTSERVE_DATA_DIR to a folder that can be written and has as much free "
                    "space, or a smaller --image-size"
                )
            pixels.append(item.name, image)
            digest.update(os.fsencode(item.name) + b"\0" + sha256.encode() + b"\n")
            usable.append(place)
        progress("decoding", place + 1, total)
    if source.problems:
        problems.sort(key=lambda problem: problem.path)
    _refuse_or_name(source, len(usable), problems, report)
    pixels.finish()
    contents = source.contents(usable, digest.hexdigest())
    return pixels, contents, tuple(problem.path for problem in problems)


def _refuse_or_name(
    source: PictureSource, usable: int, problems: list[Problem], report: Report
) -> None:
    """Names the first problems.

    Raises:
        DataError: There are problems and they are not to be skipped.
    """
    if problems and source.spec.bad_files == "refuse":
        first = problems[0]
        raise DataError(
            f"{source.spec.origin}: {len(problems)} of {len(problems) + usable} images cannot be "
            f"used, the first: {first.path}: {first.reason}. Remedy: repair or remove them, or "
            "--bad-files skip"
        )
    for problem in problems[:_NAMED]:
        report(f"skipped {problem.path}: {problem.reason}")
    if len(problems) > _NAMED:
        report(f"skipped {len(problems) - _NAMED} more")
