"""Seeded noise: each row depends only on the seed, its stream and its row number.

Scheme `philox4x64-10/as241/1`. Row r of a stream is a pure function of the seed, the
stream and r, so that a job can be split, batched, retried and spread over servers in any
way:

- The bits are those of Philox4x64-10 (Salmon et al. 2011), a counter-based
  generator. The key is (seed, 0). Row r owns the blocks r*B to r*B + B - 1 of four
  64-bit words each, where B = ceil(D / 4); block b is the cipher of the 256-bit
  counter b + draw * 2^128 + stream * 2^192. Element j of a row is its j-th word.
- A word w becomes the uniform u = (floor(w / 2^12) + 1/2) / 2^52, which is exact
  in float64 and never 0 or 1, and u becomes a normal by the inverse CDF, algorithm
  AS 241 PPND16 (Wichura 1988, accurate to 1e-16), in float64, then rounded to float32.
- For uniform noise, a word w becomes floor(w / 2^40) / 2^24, in [0, 1) and exact in
  float32.

There are two reasons for the inverse CDF rather than Box-Muller. Truncation to [-t, t] only
maps u into [Phi(-t), Phi(t)], so that the same seed gives a more typical version of the
same image. And the centre of the distribution needs only +, -, * and /, which every CPU
rounds alike.
"""

import enum
import math

import numpy as np
from numpy.typing import NDArray

#: Name of the scheme, which is part of a bundle's contract.
NAME = "philox4x64-10/as241/1"

#: Number of rows of a seed: they are numbered 0 to ROWS - 1.
ROWS = 2**64

_WORDS_PER_BLOCK = 4

# AS 241, PPND16: coefficients of the three rational approximations, highest first.
_CENTRE = (
    (2509.0809287301226727, 33430.575583588128105, 67265.770927008700853, 45921.953931549871457,
     13731.693765509461125, 1971.5909503065514427, 133.14166789178437745, 3.387132872796366608),
    (5226.495278852854561, 28729.085735721942674, 39307.89580009271061, 21213.794301586595867,
     5394.1960214247511077, 687.1870074920579083, 42.313330701600911252, 1.0),
)  # fmt: skip
_TAIL = (
    (7.7454501427834140764e-4, 0.0227238449892691845833, 0.24178072517745061177,
     1.27045825245236838258, 3.64784832476320460504, 5.7694972214606914055,
     4.6303378461565452959, 1.42343711074968357734),
    (1.05075007164441684324e-9, 5.475938084995344946e-4, 0.0151986665636164571966,
     0.14810397642748007459, 0.68976733498510000455, 1.6763848301838038494,
     2.05319162663775882187, 1.0),
)  # fmt: skip
_FAR_TAIL = (
    (2.01033439929228813265e-7, 2.71155556874348757815e-5, 0.0012426609473880784386,
     0.026532189526576123093, 0.29656057182850489123, 1.7848265399172913358,
     5.4637849111641143699, 6.6579046435011037772),
    (2.04426310338993978564e-15, 1.4215117583164458887e-7, 1.8463183175100546818e-5,
     7.868691311456132591e-4, 0.0148753612908506148525, 0.13692988092273580531,
     0.59983220655588793769, 1.0),
)  # fmt: skip


class Stream(enum.IntEnum):
    """Purpose of noise; different streams of a seed never use the same random words."""

    PRIOR = 0
    """Normal noise that the prior maps to latents, for the Sample RPC."""
    COMPONENT = 1
    """Uniform noise that selects the component of a mixture prior, for the Sample RPC."""
    POSTERIOR = 2
    """Normal noise of draws from the posterior, for the Encode RPC."""
    SCORE = 3
    """Normal noise of the importance-weighted draws, numbered by `draw`, for the Score RPC."""


def standard_normal(
    seed: int,
    offset: int,
    rows: int,
    dim: int,
    *,
    stream: Stream = Stream.PRIOR,
    draw: int = 0,
    truncation: float | None = None,
) -> NDArray[np.float32]:
    """Standard normal noise of the rows `offset` to `offset + rows - 1` of a seed.

    Args:
        seed: 0 to 2^64 - 1.
        offset: Number of the first row; offset + rows is at most 2^64.
        rows: Number of rows.
        dim: D, elements of a row.
        stream: Purpose of the noise.
        draw: Number of the draw, if a row is drawn several times.
        truncation: Bound above 0 of a normal distribution truncated to
            [-truncation, truncation]; None for no truncation.

    Returns:
        float32 [rows, dim].

    Raises:
        ValueError: A seed, offset or number of rows is out of range.
    """
    words = _words(seed, offset, rows, dim, stream, draw) >> np.uint64(12)
    centred = (words.astype(np.float64) + 0.5) * 2.0**-52 - 0.5
    if truncation is None:
        return _normal_quantile(centred).astype(np.float32)
    # Phi(t) - Phi(-t) = erf(t / sqrt 2), and the interval is symmetric about 1/2.
    centred *= math.erf(truncation / math.sqrt(2.0))
    bound = np.float32(truncation)
    return np.clip(_normal_quantile(centred).astype(np.float32), -bound, bound)


def uniform(
    seed: int, offset: int, rows: int, *, stream: Stream = Stream.COMPONENT
) -> NDArray[np.float32]:
    """Uniform noise in [0, 1) of the rows `offset` to `offset + rows - 1` of a seed.

    Args:
        seed: 0 to 2^64 - 1.
        offset: Number of the first row; offset + rows is at most 2^64.
        rows: Number of rows.
        stream: Purpose of the noise.

    Returns:
        float32 [rows, 1].

    Raises:
        ValueError: A seed, offset or number of rows is out of range.
    """
    words = _words(seed, offset, rows, 1, stream, 0) >> np.uint64(40)
    return words.astype(np.float32) * np.float32(2.0**-24)


def _words(
    seed: int, offset: int, rows: int, dim: int, stream: Stream, draw: int
) -> NDArray[np.uint64]:
    """The random 64-bit words of the rows, [rows, dim]."""
    if not (0 <= seed < 2**64 and offset >= 0 and rows >= 0 and offset + rows <= ROWS):
        raise ValueError(f"seed {seed}, offset {offset}, rows {rows}: out of the range of uint64")
    blocks = -(-dim // _WORDS_PER_BLOCK)
    first = offset * blocks + (draw << 128) + (int(stream) << 192)
    # NumPy increments the counter before it enciphers the first block.
    generator = np.random.Philox(key=seed, counter=(first - 1) % 2**256)
    words = np.asarray(generator.random_raw(rows * blocks * _WORDS_PER_BLOCK))
    return words.reshape(rows, blocks * _WORDS_PER_BLOCK)[:, :dim]


def _normal_quantile(centred: NDArray[np.float64]) -> NDArray[np.float64]:
    """Phi^-1(centred + 1/2) for |centred| < 1/2."""
    square = centred * centred
    result = centred * _rational(_CENTRE, 0.180625 - square)
    outer = np.abs(centred) > 0.425
    if outer.any():
        side = centred[outer]
        distance = np.sqrt(-np.log(0.5 - np.abs(side)))
        far = distance > 5.0
        value = np.where(
            far, _rational(_FAR_TAIL, distance - 5.0), _rational(_TAIL, distance - 1.6)
        )
        result[outer] = np.copysign(value, side)
    return result


def _rational(
    coefficients: tuple[tuple[float, ...], tuple[float, ...]], x: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Evaluates a ratio of two polynomials at x by Horner's scheme.

    Args:
        coefficients: Those of the numerator and of the denominator, highest power first.
        x: float64, any shape.
    """
    numerator, denominator = (np.full_like(x, polynomial[0]) for polynomial in coefficients)
    for a, b in zip(coefficients[0][1:], coefficients[1][1:], strict=True):
        numerator *= x
        numerator += a
        denominator *= x
        denominator += b
    numerator /= denominator
    return numerator
