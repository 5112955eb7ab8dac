"""`encode`, `decode` and `reconstruct`: images to latents and back."""

import argparse
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentserve._cli.common import (
    add_columns,
    add_draw,
    add_images,
    add_pictures,
    add_scaled,
    command,
    counted,
    resize_of,
)
from latentserve._cli.connection import add_model, connect
from latentserve._cli.failures import Usage
from latentserve._cli.labels import add_labels, labels_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from latentserve._cli.inputs import Images
    from latentserve._cli.outputs import Output


def add(commands: Any) -> None:
    """Adds the commands `encode`, `decode` and `reconstruct`."""
    encode = command(
        commands,
        "encode",
        _encode,
        "map images to posteriors",
        "latentserve encode digits.npy -o posterior.npz",
        "latentserve encode images/*.png --resize --seed 7 -o posterior.npz",
        "latentserve encode photo.jpg --resize --model taef2 -o z.npy",
    )
    add_images(encode)
    add_labels(encode)
    encode.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("posterior.npz"),
        metavar="FILE",
        help="npz file to write: mean, log_var (unless the model is a plain autoencoder) and, if "
        "drawn, z; or npy file: z if drawn, else mean; - for npz on standard output "
        "(default: posterior.npz)",
    )
    add_draw(encode, "also draw z from each posterior")
    add_scaled(encode)
    encode.add_argument(
        "--latent-dtype",
        choices=("float32", "float16", "bfloat16"),
        default="float32",
        help="dtype of the latents on the wire; those of bfloat16 are written as float32 "
        "(default: float32)",
    )
    add_model(encode)

    decode = command(
        commands,
        "decode",
        _decode,
        "map latents to images",
        "latentserve decode posterior.npz -o decoded.png",
        "latentserve decode z.npy --model taef2 -o back.jpg",
    )
    decode.add_argument(
        "latents",
        type=Path,
        metavar="LATENTS",
        help="npy file [N, D] or [N, c, h, w], or npz file written by `encode` (uses its z if "
        "present, else its mean); - for standard input",
    )
    add_labels(decode, "latent")
    add_pictures(decode, "decoded.png", files=True)
    add_scaled(decode)
    add_columns(decode)
    add_model(decode)

    reconstruct = command(
        commands,
        "reconstruct",
        _reconstruct,
        "encode and decode images; the grid shows originals above their reconstructions",
        "latentserve reconstruct digits.npy -o both.png",
        "latentserve reconstruct images/*.png --seed 7 -o both.png",
    )
    add_images(reconstruct)
    add_labels(reconstruct)
    add_pictures(
        reconstruct, "reconstructed.png", "float32 array of the reconstructions", files=True
    )
    add_columns(reconstruct, "up to 16 in one row, else a nearly square grid")
    add_draw(reconstruct, "decode a draw from each posterior instead of its mean")
    add_model(reconstruct)


def _encode(options: argparse.Namespace) -> int:
    import numpy as np

    from latentserve._cli.inputs import read_images
    from latentserve._cli.outputs import output

    target = output(options, "npz", "npy")
    images = read_images(options.images)
    with connect(options) as client, images.named():
        posterior = client.encode(
            images.values,
            draw=options.draw,
            seed=options.seed,
            offset=options.offset,
            resize=resize_of(options),
            scaled=options.scaled,
            latent_dtype=options.latent_dtype,
            labels=labels_of(options, client),
            model=options.model,
            version=options.model_version,
        )
    seed = "" if posterior.seed is None else f", seed {posterior.seed}"
    buffer = io.BytesIO()
    if target.format == "npy":
        name, latents = ("mean", posterior.mean) if posterior.z is None else ("z", posterior.z)
        np.save(buffer, latents)
        target.write(buffer.getvalue(), f"{name} of {counted(len(images), 'image')}{seed}")
        return 0
    fields = {"mean": posterior.mean, "log_var": posterior.log_var, "z": posterior.z}
    # A plain autoencoder has no log_var.
    arrays: dict[str, Any] = {name: array for name, array in fields.items() if array is not None}
    np.savez(buffer, **arrays)
    what = f"{' and '.join(arrays)} of {counted(len(images), 'image')}{seed}"
    target.write(buffer.getvalue(), what)
    return 0


def _decode(options: argparse.Namespace) -> int:
    from latentserve._cli.inputs import read_latents

    target = _picture_output(options)
    latents = read_latents(options.latents)
    decoding = {
        "scaled": options.scaled,
        "unclipped": options.unclipped,
        "quality": options.quality,
        "model": options.model,
        "version": options.model_version,
    }
    with connect(options) as client:
        decoding["labels"] = labels_of(options, client)
        images = client.decode(latents, dtype=target.file_format or target.dtype, **decoding)
    what = counted(len(images), "image")
    if isinstance(images, list):
        target.write_file(images, what)
        return 0
    target.write_images(images, what, columns=options.columns, zoom=options.zoom)
    return 0


def _picture_output(options: argparse.Namespace) -> "Output":
    """Determines the output of a command that also writes JPEG and WebP files.

    Raises:
        Usage: An option does not go with the format.
        Failure: As from `output`.
    """
    from latentserve._cli.outputs import output

    target = output(options, "png", "npy", "jpg", "jpeg", "webp")
    if options.unclipped and target.format != "npy":
        raise Usage(f"--unclipped: got a {target.format} file, wanted -o FILE.npy or --as npy")
    if options.quality is not None and target.file_format is None:
        raise Usage(f"--quality: got a {target.format} file, wanted a .jpg or .webp file")
    return target


def _reconstruct(options: argparse.Namespace) -> int:
    from latentserve._cli.inputs import read_images
    from latentserve._cli.originals import has_pillow
    from latentserve._client.codec import fresh_seed

    target = _picture_output(options)
    images = read_images(options.images)
    # Chosen here, so that it can be reported.
    seed = fresh_seed() if options.draw and options.seed is None else options.seed
    with connect(options) as client, images.named():
        drawing: dict[str, Any] = {
            "seed": seed,
            "offset": options.offset,
            "resize": resize_of(options),
            "unclipped": options.unclipped,
            "quality": options.quality,
            "labels": labels_of(options, client),
            "model": options.model,
            "version": options.model_version,
        }
        made = client.reconstruct(
            images.values, dtype=target.file_format or target.dtype, **drawing
        )
    what = counted(len(made), "image") + ("" if seed is None else f", seed {seed}")
    if isinstance(made, list):
        target.write_file(made, what)
        return 0
    if target.format == "npy":
        target.write_images(made, what)
        return 0
    columns = min(len(made), options.columns or _pair_columns(len(made)))
    sheet, blank = _with_originals(images, made, columns)
    if blank:
        why = "not decoded" if has_pillow() else "install Pillow to show them"
        what += f"; {counted(blank, 'original')} left blank ({why})"
    target.write_images(sheet, what, columns=columns, zoom=options.zoom)
    return 0


def _pair_columns(count: int) -> int:
    """Returns the number of grid columns for `count` pairs of original and reconstruction.

    Up to 16 pairs are in one row; more make a nearly square grid.
    """
    return count if count <= 16 else math.ceil(math.sqrt(2 * count))


def _with_originals(
    images: "Images", made: "NDArray[Any]", columns: int
) -> "tuple[NDArray[Any], int]":
    """Arranges images so that each row of originals is above the row of its reconstructions.

    Args:
        images: The originals.
        made: Reconstructions, uint8 [N, C, H, W].
        columns: Images per row.

    Returns:
        Images of the grid, row by row, uint8 [M, C, H, W], of which some are blank: the end of an
        incomplete row, and originals that cannot be shown. And the number of the latter.
    """
    import numpy as np

    from latentserve._cli.originals import originals
    from latentserve._cli.png import background_of

    background = background_of(made)
    above, blank = originals(images.values, made.shape, background)
    rows = -(-len(made) // columns)
    sheet = np.full((rows, 2, columns, *made.shape[1:]), background, np.uint8)
    for index in range(len(made)):
        row, column = divmod(index, columns)
        sheet[row, 0, column] = above[index]
        sheet[row, 1, column] = made[index]
    return sheet.reshape(-1, *made.shape[1:]), blank
