"""`sample`, `interpolate` and `traverse`: new images, and walks through latent space."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentserve._cli.arguments import (
    index,
    number,
    positive,
    positive_number,
    uint64,
    whole,
)
from latentserve._cli.common import (
    add_columns,
    add_offset,
    add_pictures,
    add_resize,
    add_sample_size,
    add_scaled,
    add_size,
    command,
    counted,
    resize_of,
)
from latentserve._cli.connection import add_model, connect
from latentserve._cli.failures import Failure, Usage
from latentserve._cli.labels import (
    add_label,
    add_labels,
    add_targets,
    classes_of,
    index_of,
    labels_of,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray


def add(commands: Any) -> None:
    """Adds the commands `sample`, `interpolate` and `traverse`."""
    sample = command(
        commands,
        "sample",
        _sample,
        "draw new images",
        "latentserve sample -n 100 --seed 7 -o digits.png",
        "latentserve sample -n 20 --label 7 -o sevens.png",
        "latentserve sample --by-label -o classes.png",
        "latentserve sample -n 1000 -o - --as npy | latentserve encode - -o posterior.npz",
    )
    sample.add_argument(
        "-n",
        "--count",
        type=positive,
        metavar="N",
        help="number of images (default: 100; with --by-label 10 of each class)",
    )
    which = sample.add_mutually_exclusive_group()
    add_sampling(sample, which)
    which.add_argument(
        "--by-label", action="store_true", help="sample every class, one row of the grid per class"
    )
    add_sample_size(sample)
    add_pictures(sample, "samples.png")
    add_columns(sample)
    add_model(sample)

    interpolate = command(
        commands,
        "interpolate",
        _interpolate,
        "walk from one image or latent to another",
        "latentserve interpolate three.png eight.png --steps 10 --method spherical -o path.png",
        "latentserve interpolate latents.npy -o path.png",
    )
    interpolate.add_argument(
        "ends",
        type=Path,
        nargs="+",
        metavar="END",
        help="the two ends: either two files (PNG, JPEG, WebP or npy) of one image or latent each, "
        "or a single file of two rows (npy, or npz from `encode`)",
    )
    interpolate.add_argument(
        "--steps",
        type=whole(2, 2**31 - 1),
        default=10,
        metavar="N",
        help="number of images, both ends included (default: 10)",
    )
    interpolate.add_argument(
        "--method",
        choices=("linear", "spherical"),
        default="linear",
        help="path: a straight line or an arc (default: linear)",
    )
    add_labels(interpolate, "end")
    add_targets(interpolate)
    add_resize(interpolate)
    add_size(interpolate)
    add_scaled(interpolate)
    add_pictures(interpolate, "interpolated.png")
    add_columns(interpolate, "all in one row")
    add_model(interpolate)

    traverse = command(
        commands,
        "traverse",
        _traverse,
        "vary one or two latent axes and decode the line or plane",
        "latentserve traverse --model mnist2d --axes 0 1 --steps 15 --range 3 -o plane.png",
        "latentserve traverse --axes 4 --middle three.png -o axis.png",
    )
    traverse.add_argument(
        "--axes",
        type=index,
        nargs="+",
        metavar="AXIS",
        help="one or two latent axes: the first runs to the right, the second upwards "
        "(default: 0 1)",
    )
    traverse.add_argument(
        "--steps",
        type=whole(2, 2**31 - 1),
        default=11,
        metavar="N",
        help="images along each axis (default: 11)",
    )
    traverse.add_argument(
        "--range",
        type=positive_number,
        default=3.0,
        metavar="STD",
        help="distance from the middle to either end, in standard deviations of the prior "
        "(default: 3)",
    )
    traverse.add_argument(
        "--middle",
        type=Path,
        metavar="FILE",
        help="file of the image or latent in the middle (default: the mean of the prior)",
    )
    add_label(traverse, "the image in the middle, and of those without target labels")
    add_targets(traverse)
    add_resize(traverse)
    add_size(traverse)
    add_pictures(traverse, "traversed.png", "float32 array [rows, columns, C, H, W]")
    add_model(traverse)


def add_sampling(parser: argparse.ArgumentParser, labels: Any) -> None:
    """Adds the options of a draw from the prior.

    Args:
        parser: Parser of the command.
        labels: Where to add `--label`: the parser or one of its groups.
    """
    parser.add_argument(
        "--seed",
        type=uint64,
        metavar="N",
        help="seed of the noise: the same seed gives the same images (default: a fresh one)",
    )
    add_offset(parser)
    labels.add_argument(
        "--label",
        metavar="CLASS",
        help="class to sample, for a model with labels: its index or its name (default: any class)",
    )
    parser.add_argument(
        "--temperature",
        type=number,
        metavar="T",
        help="factor on the noise: values below 1 make images more typical (default: 1)",
    )
    parser.add_argument(
        "--truncation",
        type=positive_number,
        metavar="STD",
        help="bound on each noise value, in standard deviations (default: none)",
    )


def _sample(options: argparse.Namespace) -> int:
    import numpy as np

    from latentserve._cli.outputs import output

    target = output(options, "png", "npy")
    seed, pieces = options.seed, []
    with connect(options) as client:
        labels = [index_of(options.label, "--label", options, client)]
        if options.by_label:
            model = client.model(options.model, version=options.model_version)
            if not model.labels:
                raise Failure(f"--by-label: the prior of {model.name} knows no classes")
            labels = list(range(len(model.labels)))
        count = options.count or (10 if options.by_label else 100)
        for label in labels:
            samples = client.sample_with_latents(
                count,
                seed=seed,
                offset=options.offset,
                label=label,
                temperature=options.temperature,
                truncation=options.truncation,
                size=options.size,
                dtype=target.dtype,
                model=options.model,
                version=options.model_version,
            )
            seed = samples.seed  # the same noise for every class
            pieces.append(samples.images)
    columns = count if options.by_label and options.columns is None else options.columns
    images = np.concatenate(pieces)
    what = f"{counted(len(images), 'image')}, seed {seed}"
    target.write_images(images, what, columns=columns, zoom=options.zoom)
    return 0


def _interpolate(options: argparse.Namespace) -> int:
    from latentserve._cli.inputs import naming
    from latentserve._cli.outputs import output

    target = output(options, "png", "npy")
    start, stop = _ends(options.ends)
    with connect(options) as client, naming(options.ends):
        path = client.interpolate(
            start,
            stop,
            options.steps,
            method=options.method,
            dtype=target.dtype,
            latents=_are_latents(options.ends),
            scaled=options.scaled,
            resize=resize_of(options),
            labels=labels_of(options, client),
            target_labels=classes_of(options.target_labels, "--target-labels", options, client),
            model=options.model,
            version=options.model_version,
        )
    target.write_images(
        path.images,
        f"{len(path.images)} images from one end to the other, {options.method}",
        columns=options.columns or len(path.images),
        zoom=options.zoom,
    )
    return 0


def _are_latents(paths: list[Path]) -> bool | None:
    """Whether files are of `encode`, whose npz files hold only latents; None if they may not be."""
    return all(path.suffix == ".npz" for path in paths) or None


def _ends(paths: list[Path]) -> "tuple[NDArray[Any] | bytes, NDArray[Any] | bytes]":
    from latentserve._cli.inputs import read_end, read_latents

    if len(paths) == 1:
        rows = read_latents(paths[0])
        if len(rows) != 2 or rows.ndim < 2:
            raise Failure(
                f"{paths[0]}: got shape {list(rows.shape)}, wanted two rows, or two files"
            )
        return rows[0], rows[1]
    if len(paths) != 2:
        raise Usage(f"END: got {len(paths)} files, wanted two files, or one file of two rows")
    start, stop = (read_end(path) for path in paths)
    return start, stop


def _traverse(options: argparse.Namespace) -> int:
    from latentserve._cli.inputs import naming, read_end
    from latentserve._cli.outputs import output

    axes = options.axes or []
    if len(axes) > 2 or len(set(axes)) < len(axes):
        raise Usage(f"--axes: got {' '.join(map(str, axes))}, wanted one or two different axes")
    target = output(options, "png", "npy")
    files = [] if options.middle is None else [options.middle]
    with connect(options) as client, naming(files):
        walk = client.traverse(
            options.axes,
            steps=options.steps,
            range=options.range,
            middle=None if options.middle is None else read_end(options.middle),
            dtype=target.dtype,
            latents=None if options.middle is None else _are_latents([options.middle]),
            resize=resize_of(options),
            labels=index_of(options.label, "--label", options, client),
            target_labels=classes_of(options.target_labels, "--target-labels", options, client),
            model=options.model,
            version=options.model_version,
        )
    rows, columns = walk.images.shape[:2]
    target.write_images(
        walk.images.reshape(rows * columns, *walk.images.shape[2:]),
        f"{rows} x {columns} images, {options.range:g} standard deviations to either side",
        columns=columns,
        zoom=options.zoom,
        array=walk.images,
    )
    return 0
