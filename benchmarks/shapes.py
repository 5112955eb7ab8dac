"""Request shapes: RPC, rows per call, dtype and calls in flight."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

PIXELS = 784
LATENTS = 32
_SEED = 1


@dataclass(frozen=True)
class Shape:
    """A request shape and its concurrency.

    Attributes:
        rpc: `encode` (images to mean and log_var) or `decode` (latents to images).
        rows: Images or latents per call.
        dtype: Dtype of the images: those sent to `encode`, or returned by `decode`. Latents are
            always float32.
        connections: HTTP/2 connections (h2load's -c).
        streams: Calls in flight on each connection (h2load's -m).
    """

    rpc: Literal["encode", "decode"]
    rows: int
    dtype: Literal["uint8", "float32"]
    connections: int
    streams: int

    @property
    def in_flight(self) -> int:
        """Number of calls in flight on all connections."""
        return self.connections * self.streams

    @property
    def name(self) -> str:
        """Name of the shape: `encode-1-uint8-x32`, or `encode-1-uint8-1x32` on one connection."""
        connections = "1" if self.connections == 1 < self.streams else ""
        return f"{self.rpc}-{self.rows}-{self.dtype}-{connections}x{self.in_flight}"

    def array(self) -> NDArray[Any]:
        """The array to send, seeded.

        For `encode`, images [rows, 784], uint8 or float32 in [0, 1]; for `decode`, latents float32
        [rows, 32].
        """
        rng = np.random.default_rng(_SEED)
        if self.rpc == "decode":
            return rng.standard_normal((self.rows, LATENTS), np.float32)
        images = rng.integers(0, 256, (self.rows, PIXELS), dtype=np.uint8)
        return images if self.dtype == "uint8" else unit(images)


def unit(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Converts pixels from uint8 to float32 in [0, 1]."""
    return images.astype(np.float32) / np.float32(255)


def _both(rpc: Literal["encode", "decode"], rows: int, *load: int) -> list[Shape]:
    return [Shape(rpc, rows, "uint8", *load), Shape(rpc, rows, "float32", *load)]


# A call of 1024 images is as much work as 32 calls of 32, so four in flight keep a server busy.
SHAPES = (
    *_both("encode", 1, 4, 8),
    Shape("encode", 1, "uint8", 1, 32),
    Shape("encode", 1, "uint8", 1, 1),
    *_both("encode", 64, 4, 2),
    *_both("decode", 1, 4, 8),
    Shape("decode", 1, "uint8", 1, 1),
    *_both("decode", 1024, 4, 1),
)


def named(names: Iterable[str]) -> tuple[Shape, ...]:
    """Finds the shapes whose names start with any of the given prefixes.

    Args:
        names: Prefixes; empty for all shapes.

    Raises:
        ValueError: No shape's name starts with a given prefix.
    """
    wanted = tuple(names)
    for name in wanted:
        if not any(shape.name.startswith(name) for shape in SHAPES):
            names = ", ".join(shape.name for shape in SHAPES)
            raise ValueError(f"shape: got {name!r}, wanted the beginning of one of {names}")
    return tuple(shape for shape in SHAPES if not wanted or shape.name.startswith(wanted))
