"""A public data set of four tiny IDX files, as tests download and load it."""

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.data.sources import MNIST, IdxFile, IdxSource

NAMES = tuple(file.name for file in MNIST.files)


def idx(array: NDArray[np.uint8]) -> bytes:
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def tiny_contents() -> dict[str, bytes]:
    draw = np.random.default_rng(0)
    shapes = ((6, 4, 4), (6,), (3, 4, 4), (3,))
    return {
        name: idx(draw.integers(0, 256, shape, dtype=np.uint8))
        for name, shape in zip(NAMES, shapes, strict=True)
    }


CONTENTS = tiny_contents()
GZIPPED = {f"{name}.gz": gzip.compress(raw, mtime=0) for name, raw in CONTENTS.items()}


def tiny_source(
    mirrors: tuple[str, ...] = (), npm: str | None = None, gzipped: bool = False
) -> IdxSource:
    def file(name: str) -> IdxFile:
        raw = GZIPPED[f"{name}.gz"] if gzipped else CONTENTS[name]
        return IdxFile(name, hashlib.sha256(raw).hexdigest(), gzipped)

    files = (file(NAMES[0]), file(NAMES[1]), file(NAMES[2]), file(NAMES[3]))
    return IdxSource("tiny", files, mirrors, torchvision="Tiny", npm=npm)


def put(folder: Path, contents: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, raw in contents.items():
        (folder / name).write_bytes(raw)


def files_under(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
