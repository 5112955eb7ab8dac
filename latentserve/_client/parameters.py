"""Parameter types of the clients' methods."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from numpy.typing import ArrayLike

#: How images are returned by methods that always return an array.
ArrayFormat = Literal["float32", "uint8", "float16", "bfloat16"]
#: How images are returned as files.
FileFormat = Literal["png", "jpeg", "webp"]
#: How images are returned: an array of values in [0, 1] or of uint8, or files. bfloat16 halves the
#: bytes on the wire, and is returned as float32.
Format = ArrayFormat | FileFormat
#: How latents are returned. bfloat16 halves the bytes on the wire, and is returned as float32.
LatentFormat = Literal["float32", "float16", "bfloat16"]
#: Path of an interpolation: a straight line or an arc.
Method = Literal["linear", "spherical"]
#: Images: an array [N, C, H, W], [N, H, W] or [N, C*H*W], or the contents of PNG, JPEG and WebP
#: files.
Images = ArrayLike | Sequence[bytes]
#: One image or one latent: an array, or the content of a PNG, JPEG or WebP file.
Point = ArrayLike | bytes
#: Whether image files of another size or colour mode are converted: to the model's size, or to the
#: nearest one that it takes; or to height and width.
Resize = bool | tuple[int, int]


@dataclass(frozen=True)
class Labelled:
    """A batch of `encode_stream` or `decode_stream` with the labels of its rows.

    For a conditional model. Where all rows of a stream have one label, its `labels` says so.

    Attributes:
        rows: Images as in `encode`, or latents as in `decode`.
        labels: Class of each row, an index into `ModelInfo.labels`; or one for all.
    """

    rows: ArrayLike | Sequence[bytes]
    labels: ArrayLike


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
        resize: Convert image files of another size or colour mode, which are refused by default.
            A model with `ModelInfo.sizes` converts each to the nearest size that it takes, or all
            to `resize=(height, width)`.
        scaled: Latents are scaled by `ModelInfo.latent_scaling`, as diffusion models expect them.
        labels: Class of each image, an index into `ModelInfo.labels`, or one for all. Needed by
            models with `ModelInfo.conditional`, and refused by others.
    """

    draw: bool
    seed: int | None
    offset: int
    resize: Resize
    scaled: bool
    labels: ArrayLike | None


class Encoding(Drawing, total=False):
    """Options of `encode`.

    Attributes:
        latent_dtype: `float32`, the default; `float16` or `bfloat16` for half the bytes.
    """

    latent_dtype: LatentFormat


class Decoding(Where, total=False):
    """Options of `decode`.

    Attributes:
        scaled: Latents are scaled by `ModelInfo.latent_scaling`, as diffusion models return them.
        unclipped: Return the decoder's values as they are, in a floating-point dtype; by default
            they are clipped to [0, 1].
        quality: Quality of JPEG and WebP files, 1 to 100; 95 by default.
        labels: Class that each latent is decoded with, or one for all, as in `Drawing`. Of
            `decode_stream`, one for all batches but those of `Labelled`.
    """

    scaled: bool
    unclipped: bool
    quality: int | None
    labels: ArrayLike | None


class Reconstructing(Drawing, total=False):
    """Options of `reconstruct`.

    Attributes:
        unclipped: As in `Decoding`.
        quality: As in `Decoding`.
        target_labels: Class that each image is decoded with, or one for all; those of `labels` by
            default.
    """

    unclipped: bool
    quality: int | None
    target_labels: ArrayLike | None


class Sampling(Where, total=False):
    """How images are drawn from the prior.

    For given options image i depends only on the seed and on offset + i, so a sequence may be
    split anywhere and its parts computed by several servers.

    Attributes:
        seed: Seed of the sequence, 0 to 2^64 - 1; a fresh one by default, returned in the
            result.
        offset: Index of the first image in the seed's sequence; 0 by default.
        label: Index of a class in `ModelInfo.labels`; None or -1 for any class, each as often as
            in the training data.
        temperature: Factor on the standard deviation of the noise, 1 by default; images become
            more typical and less varied below 1.
        truncation: Bound on the noise, in standard deviations; none by default.
        size: Height and width of the images, for a model with `ModelInfo.sizes`; those of
            `ModelInfo.image_shape` by default. The same seed at another size is another picture.
    """

    seed: int | None
    offset: int
    label: int | None
    temperature: float | None
    truncation: float | None
    size: tuple[int, int] | None
