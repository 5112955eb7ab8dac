"""`restyle`: images in other classes, in their own style, by a conditional model."""

import argparse
from typing import TYPE_CHECKING, Any

from latentserve._cli.common import add_draw, add_images, add_pictures, command, counted, resize_of
from latentserve._cli.connection import add_model, connect
from latentserve._cli.failures import Failure
from latentserve._cli.labels import add_labels, classes_of, labels_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from latentserve._cli.inputs import Images


def add(commands: Any) -> None:
    """Adds the `restyle` command."""
    restyle = command(
        commands,
        "restyle",
        _restyle,
        "show images in other classes, each in its own style, in a row that begins with the image",
        "latentserve restyle digit.png --label 3 --to 0,1,2,3,4,5,6,7,8,9 -o row.png",
        "latentserve restyle three.png five.png --labels 3,5 -o rows.png",
        "latentserve restyle A.png --label A --to a,b,c -o row.npy",
        "latentserve restyle A.png g.png --labels A,g --together --to a,b,c -o row.png",
    )
    add_images(restyle)
    add_labels(restyle)
    restyle.add_argument(
        "--to",
        metavar="CLASSES",
        help="classes to decode with, in the form of --labels (default: every class of the model)",
    )
    restyle.add_argument(
        "--together",
        action="store_true",
        help="the images are of one thing, such as letters of a typeface: join what they say of "
        "it, and show it once, in one row that begins with the images",
    )
    add_pictures(
        restyle,
        "restyled.png",
        "float32 array [images, classes, C, H, W] (with --together [classes, C, H, W])",
    )
    add_draw(restyle, "decode a draw from each posterior, or the joined one, instead of its mean")
    add_model(restyle)


def _restyle(options: argparse.Namespace) -> int:
    from latentserve._cli.inputs import read_images
    from latentserve._cli.outputs import output
    from latentserve._client.codec import fresh_seed

    target = output(options, "png", "npy")
    images = read_images(options.images)
    # Chosen here, so that it can be reported.
    seed = fresh_seed() if options.draw and options.seed is None else options.seed
    with connect(options) as client, images.named():
        labels = labels_of(options, client)
        if labels is None:
            raise Failure("--label: got none, wanted the class of the images, or --labels")
        to = classes_of(options.to, "--to", options, client)
        if to is None:
            model = client.model(options.model, version=options.model_version)
            if not model.conditional:
                raise Failure(f"--to: {model.name} is not conditional on the class")
            to = list(range(len(model.labels)))
        made = client.restyle(
            images.values,
            labels,
            to,
            together=options.together,
            dtype=target.dtype,
            seed=seed,
            offset=options.offset,
            resize=resize_of(options),
            model=options.model,
            version=options.model_version,
        )
    columns = made.shape[-4]
    what = f"{counted(len(images), 'image')}{' together' if options.together else ''} in "
    what += "1 class" if columns == 1 else f"{columns} classes"
    if seed is not None:
        what += f", seed {seed}"
    flat = made.reshape(-1, *made.shape[-3:])
    if target.format == "npy":
        target.write_images(flat, what, array=made)
        return 0
    sheet, blank = _with_originals(images, flat, 1 if options.together else len(images))
    if blank:
        what += f"; {counted(blank, 'original')} left blank"
    width = columns + (len(images) if options.together else 1)
    target.write_images(sheet, what, columns=width, zoom=options.zoom)
    return 0


def _with_originals(
    images: "Images", made: "NDArray[Any]", rows: int
) -> "tuple[NDArray[Any], int]":
    """Arranges images so that each row begins with its originals.

    Args:
        images: The N originals.
        made: What was made of them, row by row, uint8 [M, C, H, W].
        rows: Number of rows, which N and M are multiples of.

    Returns:
        uint8 [N + M, C, H, W], row by row, and the number of originals that are left blank.
    """
    import numpy as np

    from latentserve._cli.originals import originals
    from latentserve._cli.png import background_of

    shape = made.shape[1:]
    first, blank = originals(images.values, (len(images), *shape), background_of(made))
    sheet = np.concatenate(
        [first.reshape(rows, -1, *shape), made.reshape(rows, -1, *shape)], axis=1
    )
    return sheet.reshape(-1, *shape), blank
