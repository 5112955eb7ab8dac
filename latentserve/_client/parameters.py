"""Parameter types of the clients' methods."""

from collections.abc import Sequence
from typing import Literal, TypedDict

from numpy.typing import ArrayLike

#: How images are returned: float32 in [0, 1], uint8, or PNG files.
Format = Literal["float32", "uint8", "png"]
#: How images are returned by methods that always return an array.
ArrayFormat = Literal["float32", "uint8"]
#: Path of an interpolation: a straight line or an arc.
Method = Literal["linear", "spherical"]
#: Images: an array [N, C, H, W], [N, H, W] or [N, C*H*W], or the contents of PNG and JPEG files.
Images = ArrayLike | Sequence[bytes]
#: One image or one latent: an array, or the content of a PNG or JPEG file.
Point = ArrayLike | bytes


class Where(TypedDict, total=False):
    """The model that a call is for.

    Attributes:
        model: Name of the model; empty, the default, for the server's default model.
        version: Version of the model; 0, the default, for the highest one that is served.
    """

    model: str
    version: int


class Drawing(Where, total=False):
    """How images are read, and whether z is drawn from their posteriors.

    Attributes:
        draw: Draw z from each posterior; implied by a seed.
        seed: Seed of the draw, 0 to 2^64 - 1; a fresh one by default, returned in the result.
        offset: Index of the first row in the seed's sequence; 0 by default.
        resize: Convert image files of another size or colour mode; refused by default.
    """

    draw: bool
    seed: int | None
    offset: int
    resize: bool


class Sampling(Where, total=False):
    """How images are drawn from the prior.

    For given options image i depends only on the seed and on offset + i, so a sequence may be
    split anywhere and its parts computed by several servers.

    Attributes:
        seed: Seed of the sequence, 0 to 2^64 - 1; a fresh one by default, returned in the
            result.
        offset: Index of the first image in the seed's sequence; 0 by default.
        label: Index of a class in `ModelInfo.labels`; None or -1 for any class.
        temperature: Factor on the standard deviation of the noise, 1 by default; images become
            more typical and less varied below 1.
        truncation: Bound on the noise, in standard deviations; none by default.
    """

    seed: int | None
    offset: int
    label: int | None
    temperature: float | None
    truncation: float | None
